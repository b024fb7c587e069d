"""What SECURITY.md promises: no code from files, no paths out of a folder, no markup, no secrets, private temporary files."""

import ast
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_insights.audit_page import _filled

import inat_ft
from inat_ft.crash import redact, write_crash
from inat_ft.data.manifest import Manifest, read_manifest, write_manifest
from inat_ft.engine.distributed import SINGLE_PROCESS
from inat_ft.errors import DataError, RecordError
from inat_ft.evaluation.predictions import read_predictions, write_csv, write_predictions
from inat_ft.metrics.base import Predictions
from inat_ft.records import atomic_write, read_record, write_text
from inat_ft.setup import run_lock
from inat_ft.tables import Table
from inat_ft.text import csv_cell, from_csv_cell
from tests.conftest import make_images

SOURCES = [
    file for folder in ("inat_ft", "plugins") for file in (Path(inat_ft.__file__).parents[1] / folder).rglob("*.py")
]
EVIL = "<img src=x onerror=alert(1)> [/b] [red]x[/red] \x1b]0;title\x07 =1+1"


def calls() -> list[tuple[str, str, dict[str, str]]]:
    """Return the place, the called name and the keyword arguments of every call in the package and its plugins."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                options = {each.arg: ast.unparse(each.value) for each in node.keywords if each.arg}
                found.append((f"{file.name}:{node.lineno}", ast.unparse(node.func), options))
    return found


def test_no_call_runs_code_from_a_file() -> None:
    complaints = []
    for place, name, options in calls():
        if name in ("torch.load", "torch.hub.load_state_dict_from_url") and options.get("weights_only") != "True":
            complaints.append(f"{place}: {name} without weights_only=True")
        if name == "np.load" and options.get("allow_pickle") != "False":
            complaints.append(f"{place}: np.load without allow_pickle=False")
        if name.split(".")[0] in ("pickle", "marshal", "shelve", "dill", "joblib") or name in ("eval", "exec"):
            complaints.append(f"{place}: {name}")
        if name in ("yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system", "tempfile.mktemp"):
            complaints.append(f"{place}: {name}")
        if options.get("shell") == "True":
            complaints.append(f"{place}: {name} with a shell")
        if name == "Environment" and options.get("autoescape") != "True":
            complaints.append(f"{place}: a template without autoescape")
    assert len(calls()) > 1000 and not complaints, "\n".join(complaints)


def test_yaml_is_read_by_one_loader_which_is_safe() -> None:
    places = [place.partition(":")[0] for place, name, _ in calls() if name in ("yaml.load", "yaml.safe_load")]
    assert places == ["yaml_io.py"]


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/passwd", "a\0b"])
def test_no_path_of_a_manifest_leaves_the_folder_of_the_images(path: str, manifest_file: Path, tmp_path: Path) -> None:
    import hashlib

    first, header, row, *_ = manifest_file.read_text().split("\n")
    rows = "\n".join([header, ",".join([path, *row.split(",")[1:]]), ""])
    about = json.loads(first.removeprefix("# inat-ft manifest "))
    about["fingerprint"] = hashlib.sha256(rows.encode()).hexdigest()
    file = tmp_path / "m.csv"
    file.write_text(f"# inat-ft manifest {json.dumps(about)}\n{rows}")
    with pytest.raises(DataError, match="outside the folder"):
        read_manifest(file)


@pytest.mark.parametrize("target", ["{tmp}/secret.txt", "../secret.txt", "secret.txt", "../part.csv"])
def test_a_record_that_names_another_file_does_not_show_its_content(target: str, invoke, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path, tmp_path / "runs"):
        (folder / "secret.txt").write_text("user,hunter2\n")
    (tmp_path / "part.csv").write_text("path,hunter2\n")
    record = {"name": "theirs", "test_accuracy": 0.5, "predictions": {"test": target.format(tmp=tmp_path)}}
    Path("runs/a.json").write_text(json.dumps(record))
    Path("runs/b.json").write_text(json.dumps({"name": "b", "test_accuracy": 0.4, "num_test": 10}))
    ran = invoke("compare", "runs/a.json", "runs/b.json", "--html", "page.html")
    assert ran.code == 0 and "cannot be read" in ran.out
    assert "hunter2" not in ran.out + ran.err + Path("page.html").read_text()


@pytest.mark.parametrize("content", ["", "user,hunter2\n", "path,true,predicted\nx.png,a,a\n"])
def test_a_record_that_names_an_absolute_path_reads_nothing(content: str, invoke, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(content)
    Path("a.json").write_text(json.dumps({"name": "theirs", "predictions": {"test": str(tmp_path / "p.csv")}}))
    Path("b.json").write_text(json.dumps({"name": "b", "test_accuracy": 0.4, "num_test": 10}))
    ran = invoke("compare", "a.json", "b.json")
    assert ran.code == 0 and "names its predictions by an absolute path" in " ".join(ran.out.split())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_files_of_the_system_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is empty"):
        read_predictions(tmp_path / ("../" * 20) / "proc/self/status")


def test_names_are_escaped_on_the_terminal_and_in_pages(invoke) -> None:
    evil = EVIL.replace("\x1b", "").replace("\x07", "")  # records refuse control characters in names
    rows = [(f"{n}.png", EVIL if n % 2 else "b", "b" if n % 3 else EVIL) for n in range(40)]
    write_csv(Path("p.csv"), ("path", "true", "predicted"), rows)
    for name in (evil, "other"):
        ran = invoke("record", "new", "p.csv", "--name", name, "--out", f"{len(name)}.json")
        assert ran.code == 0, ran.err
    ran = invoke("compare", f"{len(evil)}.json", "5.json", "--html", "page.html")
    assert ran.code == 0, ran.err
    assert "[/b] [red]x[/red]" in " ".join(ran.out.split()) and "\x1b" not in ran.out + ran.err
    page = Path("page.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page
    shown = Table([EVIL], [[EVIL]], EVIL)
    assert "<img" not in shown._repr_html_() and "\x1b" not in str(shown)


CELLS = st.text(max_size=4) | st.builds(
    str.__add__, st.from_regex("'{0,3}[=+@\t\r\n＝＋－＠-]", fullmatch=True), st.text()
)


@given(CELLS)
def test_no_csv_cell_is_a_formula_and_every_text_comes_back(text: str) -> None:
    cell = csv_cell(text)
    assert cell[:1] not in set("=+-@\t\r\n＝＋－＠") or not cell
    assert from_csv_cell(cell) == text
    assert cell == text or text.lstrip("'")[:1] in set("=+-@\t\r\n＝＋－＠")


@given(st.text("=+-@,;'\"a0 ", min_size=1, max_size=6).filter(str.strip), st.text("=+-@,;'a", max_size=6))
def test_names_that_are_formulas_come_back_from_csv_files(
    tmp_path_factory: pytest.TempPathFactory, name: str, path: str
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    labels, paths, classes = np.array([0, 1]), [f"{path}x/0.png", "1.png"], (name, f"{name}b")
    write_predictions(folder / "p.csv", Predictions(classes, paths, ["", ""], labels, labels, np.eye(2)))
    read = read_predictions(folder / "p.csv")
    assert (read.classes, list(read.paths), read.true.tolist()) == (classes, paths, [0, 1])
    subsets = np.zeros(2, np.uint8)
    manifest = Manifest(folder / "m.csv", folder, classes, paths, labels, subsets, ["", ""], [path, ""])
    write_manifest(manifest)
    again = read_manifest(manifest.path)
    assert (again.classes, again.paths, again.groups) == (classes, paths, [path, ""])
    assert (again.labels.tolist(), again.fingerprint) == ([0, 1], manifest.fingerprint)
    for file in (folder / "p.csv", manifest.path):
        for row in csv.reader(io.StringIO(file.read_text(), newline="")):
            assert not [cell for cell in row if re.match("[=+@-]", cell)], file.read_text()
    shutil.rmtree(folder)


def test_a_verdict_on_a_class_that_is_a_formula_is_applied(invoke, tmp_path: Path) -> None:
    make_images(tmp_path / "photos", classes=2, each=8)
    (tmp_path / "photos" / "class0").rename(tmp_path / "photos" / "=SUM(A1)")
    (tmp_path / "photos" / "class1").rename(tmp_path / "photos" / "-2+3")
    made = invoke("split", "photos", "--no-near", "--test-fraction", "0")
    assert made.code == 0, made.err
    write_csv(Path("audit.csv"), ("path", "verdict"), [("=SUM(A1)/000.png", "-2+3"), ("-2+3/001.png", "drop")])
    assert Path("audit.csv").read_text() == "path,verdict\n'=SUM(A1)/000.png,'-2+3\n'-2+3/001.png,drop\n"
    assert _filled(Path("audit.csv"))["=SUM(A1)/000.png"]["verdict"] == "-2+3"
    corrected = invoke("split", "photos", "--no-near", "--test-fraction", "0", "--corrections", "audit.csv", "--force")
    assert corrected.code == 0 and "1 label changed, 1 image dropped" in corrected.out, corrected.err
    manifest = read_manifest(Path("splits/photos.csv"))
    assert manifest.classes[manifest.labels[manifest.paths.index("=SUM(A1)/000.png")]] == "-2+3"
    assert invoke("split", "--check", "splits/photos.csv").code == 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://user:hunter2@host/x.zip", "https://user:***@host/x.zip"),
        ("https://hunter2@host/x.zip", "https://***@host/x.zip"),
        ("https://host/x.zip?token=hunter2&a=1", "https://host/x.zip?token=***&a=1"),
        ("postgresql://u:hunter2@host/db", "postgresql://u:***@host/db"),
        ("WANDB_API_KEY=hunter2 other", "WANDB_API_KEY=*** other"),
        ("{'password': 'hunter2'}", "{'password': '***'}"),
    ],
)
def test_secrets_are_removed_from_texts(text: str, kept: str) -> None:
    assert redact(text) == kept


def test_no_secret_of_the_environment_is_in_a_crash_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcd-1234-efgh")
    file = write_crash(ValueError("the key abcd-1234-efgh is wrong"), tmp_path)
    assert file is not None and "***" in file.read_text() and "abcd-1234" not in file.read_text()


@pytest.mark.parametrize(
    "url", ["http://user:hunter2@127.0.0.1:1/x.zip", "http://hunter2@127.0.0.1:1/x", "ftp://u:hunter2@h/x"]
)
def test_a_failed_download_shows_no_password(url: str, tmp_path: Path) -> None:
    from inat_ft_datasets.http import download

    with pytest.raises(inat_ft.InatFtError) as caught:
        download(url, tmp_path / "x.zip", timeout_s=1, pause_s=0)
    assert "hunter2" not in f"{caught.value.message} {caught.value.hint}"
    assert not any("hunter2" in file.read_text() for file in tmp_path.rglob("*.json"))


def test_the_temporary_copy_of_a_private_file_is_private(tmp_path: Path) -> None:
    file = tmp_path / "private"
    file.write_text("old")
    file.chmod(0o600)
    with atomic_write(file) as temporary:
        assert temporary.stat().st_mode & 0o077 == 0
        temporary.write_text("new")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_device_or_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(inat_ft.InatFtError, match="device or a pipe"):
            write_text(tmp_path / name, "text")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_a_resumed_run_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / ".resume.pt.12ab34cd.tmp"
    left.write_bytes(b"half a checkpoint")
    (tmp_path / ".hidden").touch()
    with run_lock(tmp_path, SINGLE_PROCESS):
        assert not left.exists() and (tmp_path / ".hidden").exists()


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_json_is_refused(depth: int, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text('{"name": "x", "config": ' + '{"a":' * depth + "1" + "}" * depth + "}")
    with pytest.raises(RecordError):
        read_record(file)


def test_a_home_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from inat_ft import paths

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    planted = tmp_path / f"inat-ft-{os.getuid()}"
    planted.symlink_to(tmp_path / "elsewhere")
    folder = paths._temporary_home()
    assert folder != planted and folder.stat().st_mode & 0o077 == 0
