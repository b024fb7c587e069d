"""Workers: what they do about their parents, other workers, errors that concern every trial, and processes and GPUs."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inat_ft_sweeps import worker
from inat_ft_sweeps.base import SweepBackend
from inat_ft_sweeps.folder import open_sweep
from inat_ft_sweeps.storage import Journal
from inat_ft_sweeps.study import Claimed
from inat_ft_sweeps.worker import describe_error, run_worker, run_workers

from inat_ft.errors import ConfigError, InatFtError, PluginError, StorageError, UsageError
from tests.sweeps.finished import run, sweep_over


def test_a_worker_without_its_parent_takes_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_over([0.0, 0.1])
    monkeypatch.setenv("INAT_FT_SWEEP_PARENT", str(os.getpid()))  # which is not the parent of this process
    status = run_worker(sweep, lambda job: 0.5, log=lambda line: None)
    assert status == ("waiting", "the process that started this worker has ended") and not sweep.trials()
    monkeypatch.setenv("INAT_FT_SWEEP_PARENT", str(os.getppid()))
    assert run_worker(sweep, lambda job: 0.5, log=lambda line: None)[0] == "finished"


def test_a_worker_waits_until_the_last_trial_of_another_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, waits = sweep_over([0.0]), []
    other = sweep.claim()
    assert isinstance(other, Claimed)

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            sweep.finish(other, 0.25)

    monkeypatch.setattr(worker.time, "sleep", wait)
    assert run_worker(sweep, lambda job: 0.5, log=lambda line: None)[0] == "finished"
    assert len(waits) == 3 and [trial.value for trial in sweep.trials()] == [0.25]


def test_usage_errors_concern_every_trial_until_one_has_succeeded() -> None:
    sweep = sweep_over([0.0, 0.1])

    def refuse(job, dropout: float) -> float:
        raise UsageError("there is no split", "create one: inat-ft split DATA")

    with pytest.raises(UsageError, match="there is no split"):
        run(sweep, refuse)
    reason = "there is no split; create one: inat-ft split DATA"
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [("interrupted", f"could not run: {reason}")]
    run(sweep, lambda job, dropout: 0.5, 1)
    run(sweep, refuse)
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [("complete", ""), ("failed", reason)]


def test_a_trial_is_free_again_if_even_its_failure_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_over([0.0])
    fail = sweep.fail

    def broken(*words: object) -> None:
        fail(*words)
        raise StorageError("cannot write journal.log: No space left on device")

    def interrupt(job, dropout: float) -> float:
        raise KeyboardInterrupt

    def full(job, dropout: float) -> float:
        raise StorageError("cannot write model.safetensors: No space left on device")

    monkeypatch.setattr(sweep, "fail", broken)
    with pytest.raises(KeyboardInterrupt):
        run(sweep, interrupt)
    with pytest.raises(StorageError, match=r"model\.safetensors"):
        run(sweep, full)
    run(sweep, lambda job, dropout: 0.5)
    assert [(trial.state, trial.attempts) for trial in sweep.trials()] == [("complete", 3)]


def test_an_error_is_one_line() -> None:
    assert describe_error(InatFtError("a\nb", "c\nd")) == "a; b; c; d"
    error = RuntimeError("lost\nand more")
    assert describe_error(error) == "RuntimeError: lost"
    error.crash_file = Path("runs/r/crash.txt")
    assert describe_error(error) == "RuntimeError: lost (traceback: runs/r/crash.txt)"
    assert describe_error(ConfigError("x")) == "x"


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replace the interpreter that workers are started with by a script, which notes its arguments and its GPUs."""

    def make(then: str = "exit 0") -> Path:
        script, notes = tmp_path / "python", tmp_path / "notes"
        notes.mkdir(exist_ok=True)
        note = f'echo "$OMP_NUM_THREADS $INAT_FT_SWEEP_WORKERS [$CUDA_VISIBLE_DEVICES] $*" > {notes}/$$\n'
        script.write_text(f"#!/bin/sh\n{note}{then}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return notes

    return make


def noted(notes: Path) -> list[str]:
    return sorted(file.read_text().strip() for file in notes.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="the interpreter is replaced by a shell script")
class TestProcesses:
    def test_they_share_the_cores_the_trials_and_the_gpus(self, python, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(worker, "num_cores", lambda: 8)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        notes = python()
        assert run_workers(["s", "--sweeps-dir", "sweeps"], 3, 7) == 0
        command = "-m inat_ft sweep run s --sweeps-dir sweeps --count"
        assert noted(notes) == [f"2 3 [4] {command} 2", f"2 3 [4] {command} 3", f"2 3 [7] {command} 2"]

    def test_without_a_count_or_several_gpus_there_are_no_limits(self, python, monkeypatch) -> None:
        monkeypatch.setattr(worker, "num_cores", lambda: 1)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        notes = python()
        assert run_workers(["s"], 2, None) == 0
        assert noted(notes) == ["1 2 [] -m inat_ft sweep run s"] * 2

    def test_a_worker_without_a_trial_is_not_started(self, python) -> None:
        notes = python()
        assert run_workers(["s"], 3, 2) == 0
        assert len(noted(notes)) == 2

    @pytest.mark.parametrize(("then", "code"), [("exit 2", 2), ("kill -9 $$", 137)])
    def test_the_highest_exit_code_counts(self, python, then: str, code: int) -> None:
        python(f'case "$*" in *"--count 2") {then};; esac')
        assert run_workers(["s"], 2, 3) == code

    def test_ctrl_c_stops_those_that_still_run(self, python, monkeypatch: pytest.MonkeyPatch) -> None:
        started: list[subprocess.Popen[bytes]] = []

        class Interrupted(subprocess.Popen):
            def __init__(self, *words: object, **more: object) -> None:
                super().__init__(*words, **more)
                started.append(self)

            def wait(self, timeout: float | None = None) -> int:
                if len(started) == 2 and self.poll() is None and not getattr(started[0], "asked", False):
                    started[0].asked = True
                    raise KeyboardInterrupt
                return super().wait(timeout)

        monkeypatch.setattr(worker.subprocess, "Popen", Interrupted)
        python("exec sleep 60")
        with pytest.raises(KeyboardInterrupt):
            run_workers(["s"], 2, None)
        assert [process.poll() for process in started] == [-15, -15]


@pytest.mark.parametrize(
    ("named", "installed", "expected"),
    [("0,2,", True, ["0", "2"]), ("", True, []), (None, False, []), (None, True, ["0", "1", "2"])],
)
def test_the_gpus_are_those_named_or_all(monkeypatch, named: str | None, installed: bool, expected: list[str]) -> None:
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(worker.shutil, "which", lambda program: "/bin/nvidia-smi" if installed else None)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert worker._gpus() == expected


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "journal.log")


def test_a_result_that_cannot_be_recorded_is_named_and_its_trial_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_over([0.0])

    with monkeypatch.context() as patched:

        def objective(job, dropout: float) -> float:
            patched.setattr(Journal, "append_logs", full)
            return 0.75

        said = r"cannot record the result of trial 0, val_accuracy 0\.7500: cannot write journal\.log: No space left"
        with pytest.raises(StorageError, match=said) as caught:
            run(sweep, objective)
    assert "its run is complete: sweeps/s/runs/s-00" in caught.value.hint and "sweep run s" in caught.value.hint
    again = open_sweep("s", Path("sweeps"))
    run(again, lambda job, dropout: 0.75)
    assert [(trial.state, trial.value) for trial in again.trials()] == [("complete", 0.75)]


def test_a_trial_continues_while_its_epochs_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_over([0.0], early_terminate={"type": "hyperband", "min_iter": 1, "eta": 2})
    answers = []

    def objective(job) -> float:
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append_logs", full)
            answers.append(job.report(1, 0.1))
        answers.append(job.report(2, 0.1))
        return 0.5

    run_worker(sweep, objective, log=lambda line: None)
    assert answers == [False, False] and [trial.value for trial in sweep.trials()] == [0.5]


class Three(SweepBackend):
    """Proposes three points, the last of which is not possible."""

    def ask(self, spec, trials, seed):
        return [{"dropout": 0.1}, None, {"dropout": 7.0}][len(trials)]


def test_a_backend_ends_the_search_and_its_invalid_points_are_refused() -> None:
    sweep = sweep_over([0.0, 0.1, 0.2])
    sweep.__dict__["backend"] = Three()
    status = run_worker(sweep, lambda job: 0.5, log=lambda line: None)
    assert status == ("finished", "the search is over") and [trial.params for trial in sweep.trials()] == [
        {"dropout": 0.1}
    ]
    sweep.import_trial(1, {"dropout": 0.2}, 0.5, "s-01", 1.0)
    sweep.resume()
    sweep.note("exhausted", False)
    with pytest.raises(PluginError, match=r"ask\(\) returned an invalid point: dropout=7\.0 is not a possible value"):
        run_worker(sweep, lambda job: 0.5, log=lambda line: None)


def test_a_sweep_that_fails_ten_times_says_how_to_run_it_again() -> None:
    sweep = sweep_over([number / 100 for number in range(12)])

    def objective(job, dropout: float) -> float:
        raise InatFtError("the loss is nan")

    run(sweep, objective)
    with pytest.raises(
        InatFtError, match="the sweep stopped: 10 failures in a row, the last one: the loss is nan"
    ) as caught:
        sweep.require_success(sweep.status(), "--cache-dir x")
    assert caught.value.hint == "fix the cause, then run: inat-ft sweep run s --cache-dir x"


def test_a_sweep_without_a_split_uses_the_newest_for_all_of_its_trials(manifest_file: Path) -> None:
    sweep = sweep_over([0.0, 0.1])
    with pytest.raises(UsageError, match="no manifest in splits"):
        sweep.pin_split()
    Path("splits").mkdir()
    shutil.copy(manifest_file, "splits/first.csv")
    sweep.pin_split()
    shutil.copy(manifest_file, "splits/second.csv")
    sweep.pin_split()
    assert sweep.command({"dropout": 0.1}) == (
        "inat-ft train --set data.split=splits/first.csv --set model.dropout=0.1"
    )
