"""Runs in every state on disk: damaged, moved, deleted by others, on file systems that refuse."""

import errno
import shutil
from pathlib import Path

import pytest
from inat_ft_runs import folder
from inat_ft_runs.folder import delete_run, find_run, read_run, read_runs, remove_leftovers

from inat_ft.errors import BusyError, InatFtError, StorageError, UsageError
from inat_ft.locks import FileLock
from inat_ft.records import Epoch, RunRecord, SplitInfo, read_record, write_record, write_text
from tests.runs.test_runs import configured, dump_config, epochs, make_run


@pytest.fixture
def run() -> Path:
    return make_run("first", 0.6, 1, test=0.5)


def test_an_unfinished_run_without_epochs_has_no_results(cli) -> None:
    write_text(Path("runs/new/config.yaml"), dump_config(configured()))
    found = read_run(Path("runs/new"))
    assert (found.state, found.best, found.val_accuracy, found.seconds) == ("interrupted", None, None, None)
    shown = cli("runs", "show", "new")
    assert shown.code == 0 and "best:" not in shown.out and "settings: defaults" in shown.out
    assert "next: inat-ft train --resume runs/new" in shown.err


def test_damaged_files_are_named_and_do_not_hide_the_others(cli, run: Path) -> None:
    write_text(Path("runs/bad/config.yaml"), "- a\n- b\n")
    write_text(Path("runs/bad/metrics.jsonl"), "[" * 100_000)
    write_text(Path("runs/broken/record.json"), "{")
    ran = cli("runs")
    assert ran.code == 0 and "first" in ran.out
    assert "warning: bad: runs/bad/config.yaml holds a list, not a mapping" in ran.err
    assert "warning: broken: cannot read runs/broken/record.json as JSON" in ran.err
    assert (
        cli("runs", "show", "broken").err == ""
        and "state:    damaged: cannot read" in cli("runs", "show", "broken").out
    )
    assert read_run(Path("runs/bad")).history == []


def test_a_record_of_another_program_has_the_values_that_it_names(cli) -> None:
    history = [Epoch(epoch=2, val_accuracy=0.7), Epoch(epoch=3)]
    write_record(RunRecord(name="r", history=history, best_epoch=1), Path("runs/r/record.json"))
    found = read_run(Path("runs/r"))
    assert (found.best, found.val_accuracy, found.seconds) == (None, None, None)
    assert cli("runs", "show", "r").code == 0
    write_record(RunRecord(name="r", history=history, best_epoch=2), Path("runs/r/record.json"))
    assert read_run(Path("runs/r")).val_accuracy == 0.7


def test_all_that_a_record_knows_is_shown(cli, run: Path) -> None:
    record, file = read_record(run)
    split = SplitInfo(manifest="../../splits/s.csv", fingerprint="f", counts={"train": 1200, "test": 100})
    write_record(record.model_copy(update={"split": split, "notes": ["a soup of two runs"]}), file)
    shown = cli("runs", "show", "first")
    assert "data:     splits/s.csv: 1,200 train, 100 test; 2 classes" in shown.out
    assert "network:  100 parameters, 10 of them trained" in shown.out and "note:     a soup of two runs" in shown.out
    assert "next: inat-ft train --config runs/first/config.yaml" in shown.err


def test_a_limit_says_how_many_are_not_shown(cli, run: Path) -> None:
    make_run("second", 0.7, 2)
    make_run("third", 0.7, 3)
    assert "2 more runs not shown because of --limit" in cli("runs", "--limit", 1).err


def test_cross_validations_and_hidden_folders_are_no_runs(run: Path) -> None:
    for name in ("cv", ".hidden"):
        shutil.copytree(run, Path("runs") / name)
    write_text(Path("runs/cv/cross-validation.json"), "{}")
    assert [each.name for each in read_runs(Path("runs"))] == ["first"]


def test_a_run_is_found_by_its_record_and_not_where_there_is_no_folder(run: Path) -> None:
    assert find_run("runs/first/record.json", Path("elsewhere")) == run
    assert find_run("first", Path("runs")) == run
    with pytest.raises(UsageError, match="no such run: first") as caught:
        find_run("first", Path("elsewhere"))
    assert "did you mean" not in caught.value.message


def test_without_locks_a_run_counts_as_interrupted(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "record.json").unlink()
    (run / ".lock").touch()
    assert read_run(run).state == "interrupted"
    for error in (InatFtError("no locks here"), PermissionError(errno.EACCES, "Permission denied")):

        def refuse(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(FileLock, "acquire", refuse)
            assert read_run(run).state == "interrupted"


def test_a_run_that_is_being_trained_is_not_deleted(run: Path) -> None:
    with FileLock(run / ".lock"), pytest.raises(BusyError, match="another process is training runs/first"):
        delete_run(run)
    assert (run / "record.json").is_file()


def test_a_folder_with_an_open_lock_is_deleted_as_on_windows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename, locks = Path.rename, []

    def windows(self: Path, target: Path) -> Path:
        probe = FileLock(self / ".lock")
        try:
            probe.acquire(timeout=0)
        except folder.Timeout:
            locks.append("held")
            raise PermissionError(errno.EACCES, "The process cannot access the file") from None
        probe.release()
        locks.append("free")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", windows)
    delete_run(run)
    assert locks == ["held", "free"] and not list(Path("runs").iterdir())


def test_a_folder_that_cannot_be_deleted_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        with pytest.raises(StorageError, match="cannot delete runs/first: Permission denied"):
            delete_run(run)
    assert (run / "record.json").is_file() and read_run(run).state == "complete"
    with monkeypatch.context() as patched:
        patched.setattr(folder.shutil, "rmtree", refuse)
        with pytest.raises(StorageError, match=r"cannot delete all of runs/\.deleted-first-.{8}: Permission denied"):
            delete_run(run)
    assert read_runs(Path("runs")) == []
    remove_leftovers(Path("runs"))
    assert not list(Path("runs").iterdir())


def test_two_processes_may_delete_the_same_leftovers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rmtree = shutil.rmtree

    def removed_by_another(path: Path, ignore_errors: bool = False) -> None:
        rmtree(path, ignore_errors=True)
        if not ignore_errors:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(folder.shutil, "rmtree", removed_by_another)
    delete_run(run)
    assert not list(Path("runs").iterdir())


def test_a_page_of_many_runs_draws_twelve_of_them(cli) -> None:
    for number in range(14):
        make_run(f"r{number:02d}", 0.5 + number / 100, 1 + number)
    write_text(Path("runs/open/config.yaml"), dump_config(configured()))
    write_text(Path("runs/open/metrics.jsonl"), "\n".join(epoch.model_dump_json() for epoch in epochs(0.1)))
    assert cli("runs", "html", "--out", "runs.html").code == 0
    page = Path("runs.html").read_text()
    joint = page.split("<svg", 2)[1]
    assert joint.count("<polyline") == 12 and "dashed" in joint and "r00" not in joint
    assert page.count(">r00<") >= 1 and page.count(">open<") >= 1
