"""Workers: what they do about their parents, other workers, errors that concern every trial, and processes and GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from inat_ft_sweeps import worker
from inat_ft_sweeps.study import Claimed
from inat_ft_sweeps.worker import describe_error, run_worker, run_workers

from inat_ft.errors import ConfigError, InatFtError, StorageError, UsageError
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
    error.crash_file = Path("runs/r/crash.txt")  # type: ignore[attr-defined]
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
