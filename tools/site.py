"""Hooks of MkDocs for the documentation site: `make docs`.

- Pages outside docs/ become part of the site: README.md is its home page.
- The reference of the Python API is written from `inat_ft.__all__`; mkdocstrings adds signatures and docstrings.
- Links to other files of the repository lead to its web page.
- Indented code blocks get a language for syntax highlighting.
"""

import ast
import posixpath
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
INCLUDED = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site that are files outside docs/."""
PYTHON = "reference/python.md"
GENERATED = {*INCLUDED, PYTHON}

_INDENTED = re.compile(r"(?:^    [^\n]*\n+)+", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    from mkdocs.structure.files import File

    for name, source in INCLUDED.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, PYTHON, content=python_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Resolve the links of a page, and name the languages of its code blocks."""
    name = page.file.src_uri
    return highlighted(relinked(markdown, name, config["extra"]["repository"]))


def python_reference() -> str:
    """Return the page of all public names; mkdocstrings replaces each `:::` line."""
    names = public_names()
    functions = [name for name in names if name[0].islower()]
    errors = [name for name in names if name.endswith("Error")]
    bases = [name for name in names if f"`{name}`" in _base_classes()]
    others = sorted({*names} - {*functions, *errors, *bases})
    sections = [("Functions", functions), ("Results and settings", others), ("Errors", errors), ("Base classes", bases)]
    lines = ["# Functions and classes\n", "The [guide](../api.md) shows how to use them.\n"]
    for title, members in sections:
        lines += [f"## {title}\n", *(f"::: inat_ft.{name}\n" for name in members)]
    return "\n".join(lines)


def public_names() -> list[str]:
    """Return `inat_ft.__all__` without an import of the package and of what it depends on."""
    for node in ast.parse((ROOT / "inat_ft" / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(ast.literal_eval(node.value))
    raise ValueError("inat_ft has no __all__")


def _base_classes() -> str:
    return (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("## Base classes of plugins")[2]


def relinked(markdown: str, name: str, repository: str) -> str:
    """Return the page `name` with links that work on the site: to pages of the site, or to the repository."""
    folder = posixpath.dirname(INCLUDED.get(name, f"docs/{name}"))
    top = posixpath.relpath(".", folder or ".")
    for kind in ("blob", "raw"):  # the links and pictures of README.md, which PyPI shows too
        markdown = markdown.replace(f"]({repository}/{kind}/main/", f"]({top}/")
    pages = {source: page for page, source in INCLUDED.items()}

    def target(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        inside = path.removeprefix("docs/") if path.startswith("docs/") else pages.get(path)
        if inside is not None:
            return posixpath.relpath(inside, posixpath.dirname(name) or ".")
        return f"{repository}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"

    return _LINK.sub(target, markdown)


def highlighted(markdown: str) -> str:
    """Return the page with a fence and a language around each indented code block."""
    fenced = [found.span() for found in _FENCED.finditer(markdown)]

    def fence(found: re.Match[str]) -> str:
        before = markdown[: found.start()]
        if any(start <= found.start() < end for start, end in fenced) or not before.endswith("\n\n"):
            return found[0]
        if re.match(r"[-*] |\d+\. ", before.rstrip("\n").rpartition("\n\n")[2]):  # a paragraph of a list item
            return found[0]
        code = "\n".join(line[4:] for line in found[0].rstrip("\n").splitlines())
        return f"```{language(code)}\n{code}\n```\n\n"

    return _INDENTED.sub(fence, markdown)


def code_blocks(markdown: str) -> list[tuple[str, str]]:
    """Return the language and the text of every code block of a page, those inside lists too."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", highlighted(markdown), re.MULTILINE | re.DOTALL)
    blocks = [(name or "text", textwrap.dedent(code)) for _, name, code in found]
    inside = re.findall(r"(?:^ {8}[^\n]*\n)+", _FENCED.sub("", highlighted(markdown)), re.MULTILINE)  # of list items
    return blocks + [(language(code), code) for code in map(textwrap.dedent, inside)]


_STARTS = {
    "$ ": "console",
    ">>> ": "pycon",
    "[": "toml",
    **dict.fromkeys(("inat-ft ", "pip ", "make ", "python ", "python3 ", "torchrun ", "sbatch ", "wsl "), "bash"),
}


def language(code: str) -> str:
    """Return the language of a code block that names none."""
    for start, name in _STARTS.items():
        if code.startswith(start):
            return name
    try:
        parsed = ast.parse(code).body
    except SyntaxError:
        return "text"
    plain = all(isinstance(each, ast.Expr) and isinstance(each.value, ast.Name | ast.Constant) for each in parsed)
    return "text" if plain else "python"
