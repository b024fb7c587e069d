"""The documentation site: every page is in its navigation, and it builds without a warning."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import inat_ft
from tools import screenshots, site

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def navigation(entries: list) -> list[str]:
    """Return the pages of the navigation, in order."""
    values = [next(iter(each.values())) if isinstance(each, dict) else each for each in entries]
    return [page for value in values for page in (navigation(value) if isinstance(value, list) else [value])]


def test_the_navigation_names_every_page_once() -> None:
    named = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    assert sorted(named) == sorted(pages | site.GENERATED)
    assert all((ROOT / source).is_file() for source in site.INCLUDED.values())


def test_packages_whose_names_are_reexported_are_loaded_for_the_reference() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    modules = "\n".join((ROOT / "inat_ft" / name).read_text() for name in ("insights.py", "sweeps.py"))
    needed = set(re.findall(r"(?m)^from (inat_ft_\w+)", modules))
    assert needed and needed <= set(re.findall(r"inat_ft_\w+", re.findall("preload_modules: (.*)", config)[0]))


def test_links_lead_to_the_site_or_to_the_repository() -> None:
    def link(page: str, target: str) -> str:
        return site.relinked(f"[x]({target})", page, "https://host")[4:-1]

    assert link("index.md", "docs/plugins/index.md#names") == "plugins/index.md#names"
    assert link("index.md", "https://host/blob/main/docs/data.md#boxes") == "data.md#boxes"
    assert link("index.md", "https://host/blob/main/examples/slurm.sh") == "https://host/blob/main/examples/slurm.sh"
    assert link("plugins/index.md", "../../CHANGELOG.md") == "../changelog.md"
    assert link("plugins/index.md", "../data.md") == "../data.md"
    assert link("api.md", "../examples/slurm.sh") == "https://host/blob/main/examples/slurm.sh"
    assert link("api.md", "../examples/plugins/tracker") == "https://host/tree/main/examples/plugins/tracker"
    assert link("api.md", "https://example.org/a.md") == "https://example.org/a.md"


def test_code_blocks_have_a_language() -> None:
    page = "Text.\n\n    import a\n\n    a.b()\n\nText.\n\n    inat-ft train\n\n1. Item\n\n        inat-ft eval RUN\n\n"
    page += "```yaml\n    a: 1\n```\n"
    assert site.highlighted(page).count("```python\nimport a\n\na.b()\n```") == 1
    assert sorted(site.code_blocks(page)) == [
        ("bash", "inat-ft eval RUN\n"),
        ("bash", "inat-ft train\n"),
        ("python", "import a\n\na.b()\n"),
        ("yaml", "a: 1\n"),
    ]


def test_the_python_reference_has_every_public_name() -> None:
    named = re.findall(r"(?m)^::: inat_ft\.(\w+)$", site.python_reference())
    assert sorted(named) == sorted(inat_ft.__all__)


def test_the_pages_show_the_pictures_of_the_script_with_a_description() -> None:
    shown: dict[str, set[Path]] = {}
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            assert len(text) > 20, f"{page.name}: {target} has no description"
            file = ROOT / target.partition("/raw/main/")[2] if "://" in target else (page.parent / target).resolve()
            shown.setdefault(file.relative_to(ROOT).as_posix(), set()).add(page)
    folder = screenshots.IMAGES.relative_to(ROOT).as_posix()
    assert {file for file in shown if file.startswith(f"{folder}/")} == {f"{folder}/{n}" for n in screenshots.names()}
    assert {file.name for file in screenshots.IMAGES.iterdir()} == screenshots.names()
    assert sum(file.stat().st_size for file in screenshots.IMAGES.iterdir()) < 1_500_000
    for recording in screenshots.IMAGES.glob("*.svg"):
        assert not re.search(r"url\([\"']?http|<image|<script", recording.read_text())


def test_the_lines_of_a_recording_appear_in_their_order() -> None:
    svg = screenshots.animated("runs", [(0.2, "first"), (9.0, "x" * 90), (9.1, "last")])
    delays = [float(found) for found in re.findall(r"animation-delay: ([\d.]+)s", svg)]
    assert delays == [0.0, 0.2, 1.2, 1.2, 1.3]  # a long line takes two rows; pauses are shortened
    assert "@font-face" not in svg and "inat-ft" in svg and "last" in svg


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = ROOT / ".venv-docs" / "bin" / "mkdocs"
    mkdocs = str(own) if own.is_file() else shutil.which("mkdocs")
    if mkdocs is None:
        pytest.skip("mkdocs is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [mkdocs, "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "WARNING" not in ran.stdout + ran.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning(built: Path) -> None:
    for page in navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]):
        file = page.removesuffix(".md").removesuffix("index").strip("/")
        assert (built / file / "index.html").is_file(), page
    reference = (built / "reference" / "python" / "index.html").read_text()
    assert [name for name in inat_ft.__all__ if f'id="inat_ft.{name}"' not in reference] == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_other_servers(built: Path) -> None:
    for page in built.rglob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link\b(?![^>]*rel=\"?(?:canonical|next|prev))[^>]*\bhref=\"?([^\" >]+)", text)
        assert loaded and [url for url in loaded if re.match(r"(?:https?:)?//", url)] == [], page
        assert 'data-md-component="source"' not in text  # Material asks api.github.com for its stars
    for style in built.rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text()), style
