"""Everything that a person reads avoids phrases that are not idiomatic English."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "inat_ft").rglob("*.py"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "inat_ft").rglob("*.html")),
]
BANNED = {
    r"(?<!there )\bis no (?!longer\b|more than\b)": "is not a",
    r"(?<!there )\bare no (?!longer\b)": "are not",
    r"\btold (?:from|apart)\b|\bbe told\b": "distinguished, or: not significantly different",
    r"\bheld against\b": "compared with",
    r"\bhangs? on\b": "depends on",
    r"\b(?:go|goes|going|went) on with\b|\bgo on\b|\bgoes on\b": "resume, or: continue",
    r"\banew\b": "again",
    r"\bgone or another\b": "missing or changed",
    r"\bby (?:its|their) own word\b": "as reported",
    r"\bhow-manieth\b": "number",
    r"\bborne out\b": "supported",
    r"\bvouch": "confirm",
    r"\bspeaks? for\b": "supports",
    r"\bleavings\b": "leftover files",
    r"\bsave for\b|\bsave that\b": "except",
    r"\bat it\b": "running",
    r"\bfor want of\b": "for lack of",
    r"\blooks? at the test set\b": "evaluations of the test set",
    r"\bno going on\b": "cannot be resumed",
    r"\bgiven out\b": "assigned",
    r"\bwhat learns\b": "what is trainable",
    r"\bwhence\b|\blest\b|\bthereof\b|\bwherein\b|\bhitherto\b": "a current word",
}


def prose(file: Path) -> str:
    """Return the comments and strings of a module, one to a line, or the whole text of a page."""
    text = file.read_text()
    if file.suffix != ".py":
        return text
    found = [
        " ".join(node.value.split())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found += [token.string for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join(found)


def complaints(text: str) -> list[str]:
    text = re.sub(r"[ \n]+", " ", text)
    return [
        f"...{text[max(0, found.start() - 40) : found.end() + 30]}... (write: {instead})"
        for pattern, instead in BANNED.items()
        for found in re.finditer(pattern, text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("file", [*SOURCES, *PAGES], ids=lambda file: file.relative_to(ROOT).as_posix())
def test_prose_is_idiomatic(file: Path) -> None:
    assert not complaints(prose(file))


@pytest.mark.parametrize(
    "text",
    [
        "it is no folder",
        "cannot be told from the best",
        "which hangs on the seed",
        "go on with it",
        "computed\nanew",
        "is gone or another by now",
        "By their own word A is ahead",
        "the how-manieth epoch",
    ],
)
def test_banned_phrases_are_found(text: str) -> None:
    assert complaints(text)


def test_ordinary_sentences_pass() -> None:
    assert not complaints("There is no such file. It is no longer used. Save the model and resume the run on the GPU.")
