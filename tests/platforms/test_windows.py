"""What Windows and macOS lack: the whole workflow runs in processes without it (see sitecustomize.py)."""

import ast
import ntpath
import os
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.space import SweepSpec

import inat_ft
from inat_ft.config import RunConfig
from inat_ft.data.sources.csv_file import read_rows
from inat_ft.errors import UsageError
from inat_ft.paths import check_name, relative_path
from inat_ft.registry import BACKBONES, plugins
from inat_ft.setup import new_directory
from tests.conftest import make_images
from tests.platforms.sitecustomize import FUNCTIONS, MODULES, SIGNAL_FUNCTIONS, SIGNALS, invalid_part

PACKAGE = Path(inat_ft.__file__).parent
HERE = Path(__file__).parent
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "plugins").rglob("*.py")])
SMALL = ("--image-size", 32, "--set", "model.filters=16", "--epochs", 2)


@pytest.fixture
def windows(process, tmp_path: Path):
    """Run the command line in a process that lacks what Windows lacks, with the code page of a Windows console."""

    def run(*words: object, **environment: str):
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        settings = {
            "PYTHONPATH": path,
            "TEST_FOLDER": str(tmp_path),
            "PYTHONWARNDEFAULTENCODING": "1",
            "USERNAME": "user",
        }
        return process(*words, **{**settings, "PYTHONIOENCODING": "cp1252", **environment})

    return run


@pytest.mark.slow
def test_the_workflow_needs_nothing_that_windows_lacks(windows, tmp_path: Path) -> None:
    make_images(tmp_path / "photos")
    Path("sweep.yaml").write_text("method: grid\nparameters: {lr: {values: [1.0e-2, 1.0e-3]}, epochs: {value: 1}}\n")
    small = ("--set", "model.backbone=cnn", "--set", "model.filters=16", "--set", "data.image_size=32")
    for words in (
        ("split", "photos", "--test-fraction", "0.25", "--workers", 2),
        ("split", "--check", "splits/photos.csv"),
        ("train", "--backbone", "cnn", *SMALL, "--workers", 2, "--name", "scratch"),
        ("train", "--backbone", "resnet18", "--weights", "none", "--mode", "head", "--image-size", 32, "--epochs", 2),
        ("train", "--resume", "runs/scratch"),
        ("eval", "runs/scratch"),
        ("eval", "runs/resnet18-head-1"),
        ("predict", "runs/scratch", "photos", "--out", "predictions.csv"),
        *(("export", "runs/scratch", "--format", name) for name in ("onnx", "safetensors", "torch-export")),
        ("export", "runs/scratch", "--format", "onnx"),  # replaces the first
        ("compare", "runs/scratch", "runs/resnet18-head-1", "--html", "report.html"),
        ("sweep", "create", "sweep.yaml", *small, "--name", "search"),
        ("sweep", "run", "search", "--workers", 2),
        ("sweep", "best", "search", "--train"),
        ("sweep", "report", "search"),
        ("record", "new", "runs/scratch/predictions-test.csv", "--name", "again", "--out", "again.json"),
        ("audit", "splits/photos.csv", "--backbone", "resnet18", "--set", "model.weights=none"),
        ("runs", "html"),
        ("runs", "delete", "resnet18-head-1", "--yes"),
        ("cache", "--clear"),
        ("doctor",),
    ):
        ran = windows(*words)
        assert ran.code == 0, f"{words}: {ran.err}"
    assert Path("report.html").exists() and not Path("runs/resnet18-head-1").exists()


def calls(file: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def text_problem(call: ast.Call) -> str:
    """Return what a call that opens a text file lacks."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("run", "Popen", "check_output") and {"text", "universal_newlines"} & set(given):
        return "" if "encoding" in given else "encoding"
    if name in ("read_text", "write_text") and owner:
        positional = len(call.args) > (name == "write_text")
        is_written, has_encoding = name == "write_text", positional or "encoding" in given
    elif name == "open" and owner not in ("Image", "os", "webbrowser", "wave"):
        modes = [*call.args[0 if owner and owner != "gzip" else 1 :][:1], *filter(None, [given.get("mode")])]
        mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r" if not modes else "b"
        if "b" in mode or (owner == "gzip" and "t" not in mode):
            return ""
        is_written, has_encoding = not mode.startswith("r"), "encoding" in given
    else:
        return ""
    lacking = ["encoding"] * (not has_encoding) + ["newline"] * (is_written and "newline" not in given)
    return " and ".join(lacking)


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ("open('a')", "encoding"),
        ("open('a', 'rb')", ""),
        ("file.open('w', encoding='utf-8')", "newline"),
        ("file.open(mode='wb')", ""),
        ("file.write_text(text)", "encoding and newline"),
        ("file.read_text('utf-8')", ""),
        ("Image.open(file)", ""),
        ("subprocess.run(command, text=True)", "encoding"),
    ],
)
def test_the_check_of_text_files_finds_what_is_missing(source: str, lacks: str) -> None:
    assert text_problem(ast.parse(source).body[0].value) == lacks


def test_text_files_do_not_depend_on_the_platform() -> None:
    """Windows reads text in the code page of the country, and writes other line breaks, unless told otherwise."""
    lacking = [
        f"{file}:{call.lineno}: {problem}"
        for file in SOURCES
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and (problem := text_problem(call))
    ]
    assert not lacking, "\n".join(lacking)


def posix_names(statement: ast.AST) -> Iterator[str]:
    """Yield what a statement uses that Windows lacks, unless the statement itself checks the platform."""
    for child in ast.iter_child_nodes(statement):
        is_guarded = isinstance(child, ast.stmt) and not isinstance(child, (ast.FunctionDef, ast.ClassDef))
        text = ast.unparse(child) if is_guarded else ""
        if re.search(r"hasattr\(|os\.name|sys\.platform|suppress\(ImportError\)|except ImportError", text):
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            named = [alias.name for alias in child.names] if isinstance(child, ast.Import) else [child.module or ""]
            yield from (name for name in named if name.partition(".")[0] in MODULES)
        elif isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            lacking = {"os": FUNCTIONS, "signal": (*SIGNALS, *SIGNAL_FUNCTIONS)}.get(child.value.id, ())
            if child.attr in lacking:
                yield f"{child.value.id}.{child.attr}"
        yield from posix_names(child)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("def f():\n    from pwd import getpwnam", ["pwd"]),
        ("def f():\n    os.kill(1, signal.SIGKILL)", ["signal.SIGKILL"]),
        ("cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1", []),
        ("with suppress(ImportError):\n    import resource", []),
        ("import resource\nhasattr(os, 'fork')", ["resource"]),
    ],
)
def test_the_check_of_posix_names_finds_them(source: str, found: list[str]) -> None:
    assert list(posix_names(ast.parse(source))) == found


def test_nothing_is_used_that_windows_lacks() -> None:
    found = {file: list(posix_names(ast.parse(file.read_text(encoding="utf-8")))) for file in SOURCES}
    assert {str(file): names for file, names in found.items() if names} == {}


def test_a_path_on_another_drive_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "relpath", ntpath.relpath)
    monkeypatch.setattr(os, "sep", "\\")
    folder = PureWindowsPath("C:/data/splits")
    assert relative_path(PureWindowsPath("D:/photos"), folder) == "D:/photos"
    assert relative_path(PureWindowsPath("C:/data/photos/birds"), folder) == "../photos/birds"


def test_a_list_of_images_may_have_backslashes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "a\\2.png"):  # the second is a file name with a backslash, which Linux allows
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("path,label\na\\1.png,x\na\\2.png,x\na/3.png,x\n", encoding="utf-8")
    rows = [row["path"] for _, row in read_rows(tmp_path / "list.csv", "label")]
    assert rows == ["a/1.png", "a\\2.png", "a/3.png"]


@pytest.mark.parametrize("name", ["con", "NUL", "aux.1", "com1", "Lpt9.x", "run."])
def test_a_run_or_sweep_has_no_name_that_windows_reserves(name: str) -> None:
    assert invalid_part(name)
    with pytest.raises(UsageError, match="Windows cannot store a folder with the name"):
        new_directory(RunConfig(name=name), Path("runs"))
    spec = SweepSpec.model_validate({"method": "grid", "parameters": {"lr": {"values": [0.1, 0.01]}}})
    with pytest.raises(UsageError, match="Windows cannot store a folder with the name"):
        create(spec, Path("sweeps"), name)
    assert not Path("runs", name).exists() and not Path("sweeps", name).exists()


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True))
def test_every_name_that_is_accepted_is_valid_on_windows(name: str) -> None:
    try:
        check_name(name)
    except UsageError:
        assert invalid_part(name)
    else:
        assert not invalid_part(name)


def test_the_names_of_all_plugins_are_valid_file_names() -> None:
    assert [name for name in plugins(BACKBONES) if invalid_part(name)] == []
