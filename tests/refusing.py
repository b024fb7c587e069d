"""The check that a command line is refused in one sentence, and that nothing is written."""

import re
from pathlib import Path
from typing import Any

import pytest

Says = str | tuple[str, ...]


def listing() -> dict[str, tuple[int, int] | None]:
    """Return the size and the time of each file in the working folder; None for folders.

    The cache is not listed, in which hashes of images are stored.
    """
    found = {}
    for path in (path for path in Path().rglob("*") if path.parts[0] != "cache"):
        about = path.lstat()
        found[path.as_posix()] = None if path.is_dir() else (about.st_size, about.st_mtime_ns)
    return found


@pytest.fixture
def refused(invoke):
    """Run a command line; check that it is refused, with what and with a hint, and that nothing is written.

    The hint is a line of its own, or a similar name.
    """

    def run(words: list[str], code: int, says: Says) -> Any:
        before = listing()
        ran = invoke(*words)
        text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", ran.err).split())
        assert ran.code == code, f"exit code {ran.code}: {ran.err}"
        for part in (says,) if isinstance(says, str) else says:
            assert " ".join(part.split()) in text, ran.err
        assert "Traceback" not in ran.err and "bug in inat-ft" not in ran.err
        has_hint = ran.err.count("\n") > 1 or "did you mean" in text
        assert re.match(r"Usage: |\W*Error\b", text) or (re.search("^inat-ft: ", ran.err, re.M) and has_hint), ran.err
        assert len(text) < 1500
        assert listing() == before
        return ran

    return run


def write(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def cases(table: list[Any]) -> Any:
    """Return the parametrization of a test by a table, with short IDs."""
    shown = [re.sub(r"[^ -~]", ".", str(case[0] if isinstance(case, tuple) else case))[:40] for case in table]
    names = [f"{number}: {'' if '<function' in text else text}" for number, text in enumerate(shown)]
    return pytest.mark.parametrize("case", table, ids=names)
