"""The local sweep: run caps, failures, repeats, stops, and workers killed in the middle."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inat_ft_sweeps import worker
from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.folder import create, list_sweeps, only_sweep, open_sweep
from inat_ft_sweeps.objective import TrainingObjective, metric_of
from inat_ft_sweeps.parsing import parse_spec, read_spec
from inat_ft_sweeps.selection import choose
from inat_ft_sweeps.worker import run_worker
from sklearn.metrics import log_loss

from inat_ft.errors import BusyError, ConfigError, DataError, InatFtError, RecordError, UsageError
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.records import Epoch, RunRecord, read_record
from inat_ft.training import TrainCallbacks

SMALL = {
    "method": "random",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "parameters": {"epochs": {"values": [1, 2]}, "dropout": {"values": [0.0, 0.1, 0.2]}},
}


def accuracy(job: TrialJob) -> float:
    settings = dict(job.overrides)
    return 0.5 + settings["model.dropout"] + settings["optim.epochs"] / 100


def quiet(line: str) -> None:
    pass


def small(folder: Path, **more):
    return create(parse_spec({**SMALL, **more}), folder, "small")


def test_22_trials_are_22_points_the_same_ones_twice(tmp_path: Path) -> None:
    sweeps = [create(read_spec(None), tmp_path, id, seed=5) for id in ("first", "second")]

    assert run_worker(sweeps[0], accuracy, log=quiet) == ("finished", "run_cap is reached")
    run_worker(sweeps[1], accuracy, 10, quiet)  # and the rest by another process, which reads it anew
    run_worker(open_sweep("second", tmp_path), accuracy, log=quiet)

    first, second = ([trial.params for trial in sweep.trials()] for sweep in sweeps)
    assert len({tuple(point.values()) for point in first}) == 22
    assert first == second
    assert [trial.run for trial in sweeps[0].trials()][:2] == ["first-00", "first-01"]


def test_a_sweep_ends_when_the_space_is_used_up(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=100)

    assert run_worker(sweep, accuracy, log=quiet) == ("finished", "all 6 points have been tried")
    assert sweep.status() == ("finished", "all 6 points have been tried")
    best = sweep.best()[0]
    assert (best.params, best.value) == ({"epochs": 2, "dropout": 0.2}, pytest.approx(0.72))
    assert sweep.command(best.params) == "inat-ft train --set optim.epochs=2 --set model.dropout=0.2"


def test_a_trial_keeps_the_epoch_that_is_best_by_the_metric_of_its_sweep(tmp_path: Path, manifest_file) -> None:
    fixed = {
        "data.split": str(manifest_file), "data.image_size": 32, "model.backbone": "cnn", "model.filters": 16,
        "optim.lr": 0.003, "optim.epochs": 6, "stop.patience": 0, "compute.precision": "fp32",
    }  # fmt: skip
    parameters = {**{name: {"value": value} for name, value in fixed.items()}, "dropout": {"values": [0.0, 0.1]}}
    sweep = small(tmp_path, metric={"name": "val_loss", "goal": "minimize"}, parameters=parameters)
    assert "--set stop.monitor=val_loss" in sweep.command({"dropout": 0.1})
    objective = TrainingObjective("val_loss", tmp_path / "cache", lambda config: TrainCallbacks())
    assert run_worker(sweep, objective, 1, quiet)[0] == "waiting"
    (trial,) = sweep.trials()
    record, _ = read_record(sweep.runs / trial.run)
    losses = [epoch.val_loss for epoch in record.history]
    assert trial.value == min(losses) == losses[record.best_epoch - 1]
    predictions = read_predictions(sweep.runs / trial.run / "predictions-val.csv")
    assert log_loss(predictions.true, predictions.probabilities) == pytest.approx(trial.value, rel=1e-3)


def test_an_epoch_without_a_finite_loss_is_reported_as_such() -> None:
    record = RunRecord(name="n", history=[Epoch(epoch=1, val_loss=None)], best_epoch=1)
    assert math.isnan(metric_of(record, "val_loss"))


@pytest.mark.parametrize("lr", [{"values": [0.1, 0.2]}, {"min": 0.01, "max": 0.1}])
def test_a_trial_has_only_what_counts_for_its_mode(tmp_path: Path, lr) -> None:
    parameters = {"mode": {"values": ["head", "partial"]}, "unfreeze_from": {"values": ["layer3", "layer4"]}, "lr": lr}
    metric = {"name": "val_accuracy", "goal": "maximize"}
    sweep = create(parse_spec({"method": "bayes", "metric": metric, "parameters": parameters}), tmp_path, "mixed")
    failed = []

    def objective(job: TrialJob) -> float:
        settings = dict(job.overrides)
        assert ("strategy.unfreeze_from" in settings) == (settings["strategy.name"] == "partial")
        if not failed:
            failed.append(job.name)
            raise RuntimeError("once")  # so that a repetition is among them
        return settings["optim.lr"]

    run_worker(sweep, objective, 7, quiet)
    trials = sweep.trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert len({tuple(trial.params.items()) for trial in trials}) == 6
    assert trials[0].attempts == 2
    assert {tuple(trial.params) for trial in trials} == {("mode", "lr"), ("mode", "unfreeze_from", "lr")}


def test_count_limits_one_call_and_a_target_ends_the_sweep(tmp_path: Path) -> None:
    sweep = small(tmp_path, method="grid", metric={"name": "val_accuracy", "goal": "maximize", "target": 0.6})

    assert run_worker(sweep, accuracy, 1, quiet)[0] == "waiting"
    assert len(sweep.trials()) == 1
    state, why = run_worker(sweep, accuracy, log=quiet)
    assert (state, why) == ("finished", "a trial reached the target, val_accuracy 0.6")
    assert [trial.params["dropout"] for trial in sweep.trials()] == [0.0, 0.1]


def test_a_failure_is_recorded_retried_once_and_skipped(tmp_path: Path) -> None:
    sweep, tried = small(tmp_path, method="grid"), []

    def objective(job: TrialJob) -> float:
        tried.append(job.name)
        if job.name == "small-01":
            raise RuntimeError("out of memory")
        return math.nan if job.name == "small-02" and tried.count(job.name) == 1 else accuracy(job)

    assert run_worker(sweep, objective, log=quiet)[0] == "finished"
    assert tried.count("small-01") == 2
    assert tried.count("small-02") == 2
    trials = sweep.trials()
    assert [trial.state for trial in trials] == ["complete", "failed", "complete", "complete", "complete", "complete"]
    assert (trials[1].reason, trials[1].value, trials[1].attempts) == ("RuntimeError: out of memory", None, 2)


def test_ten_failures_in_a_row_stop_the_sweep_until_it_is_run_again(tmp_path: Path) -> None:
    sweep = create(read_spec(None), tmp_path, "builtin")

    def objective(job: TrialJob) -> float:
        raise InatFtError("the loss is nan in epoch 1")

    state, why = run_worker(sweep, objective, log=quiet)
    assert (state, "the loss is nan in epoch 1" in why) == ("failed", True)
    assert sum(trial.attempts for trial in sweep.trials()) == 10
    sweep.resume()
    assert run_worker(sweep, accuracy, log=quiet)[0] == "finished"
    assert {trial.state for trial in sweep.trials()} == {"complete"}


def test_a_trial_that_cannot_be_is_not_repeated_and_tells_what_to_do(tmp_path: Path) -> None:
    sweep = small(tmp_path, run_cap=1)

    def objective(job: TrialJob) -> float:
        raise ConfigError("unknown stage 'layer9'", "it has: layer1 layer2")

    run_worker(sweep, objective, log=quiet)
    (trial,) = sweep.trials()
    assert (trial.state, trial.attempts) == ("failed", 1)
    assert trial.reason == "unknown stage 'layer9'; it has: layer1 layer2"
    sweep.resume()  # as nothing but failures came of it, running it again tries anew
    assert run_worker(sweep, accuracy, log=quiet)[0] == "finished"
    assert [trial.state for trial in sweep.trials()] == ["complete"]


def test_missing_data_ends_the_first_trial_and_costs_nothing(tmp_path: Path) -> None:
    sweep = small(tmp_path)

    def objective(job: TrialJob) -> float:
        raise DataError("no images")

    with pytest.raises(DataError, match="no images"):
        run_worker(sweep, objective, log=quiet)
    assert [(trial.state, trial.reason) for trial in sweep.trials()] == [("interrupted", "could not run: no images")]
    assert run_worker(sweep, accuracy, log=quiet)[0] == "finished"
    assert [trial.state for trial in sweep.trials()] == ["complete"] * 6


def test_a_disk_that_fills_in_the_middle_of_a_sweep_uses_up_no_point(tmp_path: Path) -> None:
    sweep = small(tmp_path, method="grid")

    def objective(job: TrialJob) -> float:
        if job.name != "small-00":
            Path("/dev/full").write_text("weights")
        return accuracy(job)

    for _ in range(4):  # more often than a trial may fail
        with pytest.raises(OSError, match="No space left"):
            run_worker(sweep, objective, log=quiet)
    assert [trial.state for trial in sweep.trials()] == ["complete", "interrupted"]
    assert "No space left" in sweep.trials()[1].reason
    assert run_worker(sweep, accuracy, log=quiet) == ("finished", "all 6 points have been tried")
    assert [trial.state for trial in sweep.trials()] == ["complete"] * 6


def test_stop_and_go_on(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    run_worker(sweep, accuracy, 2, quiet)
    sweep.stop()

    assert run_worker(sweep, accuracy, log=quiet)[0] == "stopped"
    assert len(sweep.trials()) == 2
    sweep.resume()
    assert run_worker(sweep, accuracy, log=quiet)[0] == "finished"


def test_ctrl_c_puts_the_trial_back(tmp_path: Path) -> None:
    sweep = small(tmp_path)

    def objective(job: TrialJob) -> float:
        raise KeyboardInterrupt

    for _ in range(5):  # a user may do this as often as he likes
        with pytest.raises(KeyboardInterrupt):
            run_worker(sweep, objective, log=quiet)
    assert [(trial.state, trial.number) for trial in sweep.trials()] == [("interrupted", 0)]
    run_worker(sweep, accuracy, 1, quiet)
    assert [(trial.state, trial.number) for trial in sweep.trials()] == [("complete", 0)]


def test_hyperband_ends_poor_trials_and_nothing_else_does(tmp_path: Path) -> None:
    def objective(job: TrialJob) -> float:
        value = accuracy(job)
        return next((value for epoch in range(1, 10) if job.report(epoch, value)), value)

    plain = small(tmp_path, method="grid")
    run_worker(plain, objective, log=quiet)
    assert {trial.state for trial in plain.trials()} == {"complete"}

    spec = parse_spec({**SMALL, "method": "grid", "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 2}})
    spec = spec.model_copy(update={"metric": spec.metric.model_copy(update={"goal": "minimize"})})
    pruned = create(spec, tmp_path, "pruned")
    run_worker(pruned, objective, log=quiet)
    states = [trial.state for trial in pruned.trials()]
    assert states[0] == "complete"
    assert "pruned" in states
    assert all(trial.value is not None for trial in pruned.trials())


def test_kill_9_loses_no_finished_trial_and_the_running_one_is_taken_up(tmp_path: Path, worker_command) -> None:
    sweep = create(parse_spec(SMALL), tmp_path, "killed")
    workers = [subprocess.Popen(worker_command("killed", 0.6), stdout=subprocess.PIPE) for _ in range(2)]
    log = tmp_path / "log"
    while not log.exists() or log.read_text().count("start") < 3:
        time.sleep(0.05)
    third = int(re.findall(r"start (\d+)\n", log.read_text())[2])  # who has just begun, and finished one before
    victim, other = sorted(workers, key=lambda worker: worker.pid != third)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    out, _ = other.communicate(timeout=900)

    assert b"all 6 points have been tried" in out
    trials = sweep.trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert len({tuple(trial.params.values()) for trial in trials}) == 6
    ends = [line for line in log.read_text().splitlines() if line.startswith("end")]
    assert len(set(ends)) == 6
    assert sum(trial.attempts for trial in trials) == 7


def test_workers_killed_at_any_moment_leave_a_sweep_that_goes_on(tmp_path: Path, worker_command) -> None:
    sweep = create(parse_spec(SMALL), tmp_path, "often")
    for delay in (0.05, 0.11, 0.23):
        victims = [subprocess.Popen(worker_command("often", 0.02), stdout=subprocess.DEVNULL) for _ in range(2)]
        while not (tmp_path / "log").exists():
            time.sleep(0.02)
        time.sleep(delay)
        for victim in victims:
            victim.kill()
            victim.wait()
    subprocess.run(worker_command("often", 0.01), check=True, stdout=subprocess.DEVNULL)

    assert [trial.state for trial in sweep.trials()] == ["complete"] * 6
    assert sweep.status()[0] == "finished"


def test_half_a_line_in_the_journal_is_cut_off(tmp_path: Path) -> None:
    sweep = small(tmp_path)
    run_worker(sweep, accuracy, 2, quiet)
    with (sweep.folder / "journal.log").open("ab") as journal:
        journal.write(b'{"op_code":4,"wor')

    again = open_sweep("small", tmp_path)
    assert run_worker(again, accuracy, log=quiet)[0] == "finished"
    assert len(again.trials()) == 6
    for line in (sweep.folder / "journal.log").read_text().splitlines():
        json.loads(line)


def test_sweeps_are_found_by_id_or_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no sweeps in"):
        only_sweep(tmp_path)
    small(tmp_path)
    assert only_sweep(tmp_path) == "small"
    create(read_spec(None), tmp_path, "other")
    with pytest.raises(UsageError, match="has 2 sweeps: which one"):
        only_sweep(tmp_path)
    assert [about["id"] for about in list_sweeps(tmp_path)] == ["small", "other"]
    with pytest.raises(UsageError, match="no sweep 'smal'"):
        open_sweep("smal", tmp_path)
    with pytest.raises(UsageError, match="exists already"):
        small(tmp_path)


def test_a_sweep_whose_creation_was_interrupted_is_named(tmp_path: Path) -> None:
    journal = small(tmp_path).folder / "journal.log"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0])  # the study without its specification
    with pytest.raises(RecordError, match=r"creating .*small was interrupted"):
        open_sweep("small", tmp_path)
    journal.write_text("")
    with pytest.raises(UsageError, match="no sweep 'small' in"):
        open_sweep("small", tmp_path)


def test_postgresql_without_its_driver_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InatFtError, match="sweeps in PostgreSQL need its driver") as caught:
        create(read_spec(None), tmp_path, "remote", storage="postgresql://nobody@127.0.0.1:9/sweeps")
    assert caught.value.hint == "pip install 'inat-ft[postgres]'" and not (tmp_path / "remote").exists()


def test_sqlite_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="with SQLite, two workers can run the same trial"):
        create(read_spec(None), tmp_path, "lite", storage="sqlite:///x.db")


@pytest.mark.parametrize(
    "line",
    [
        "not JSON",
        "[]",
        '{"op_code": "x", "worker_id": "w"}',
        '{"op_code": 4, "worker_id": "w"}',
        '{"op_code": 77, "worker_id": "w"}',
    ],
)
def test_a_damaged_journal_is_named_in_one_sentence(tmp_path: Path, line: str) -> None:
    sweep = small(tmp_path)
    run_worker(sweep, accuracy, 1, quiet)
    journal = sweep.folder / "journal.log"
    journal.write_text(journal.read_text() + line + "\n")

    with pytest.raises(RecordError, match=r"journal\.log is damaged: ") as caught:
        open_sweep("small", tmp_path)
    assert "\n" not in caught.value.message


def test_a_run_that_another_process_is_training_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BUSY_S", 0.01)
    sweep, tries = small(tmp_path), []

    def objective(job: TrialJob) -> float:
        tries.append(job.name)
        if len(tries) < 4:
            raise BusyError("another process is training it")
        return accuracy(job)

    run_worker(sweep, objective, 1, quiet)
    assert [(trial.state, trial.attempts) for trial in sweep.trials()] == [("complete", 1)]


def test_commands_in_messages_find_the_sweep_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert small(Path("sweeps")).next_command("run") == "inat-ft sweep run small"
    sweep = small(Path("my sweeps"))
    assert sweep.next_command("best", "--eval") == "inat-ft sweep best small --sweeps-dir 'my sweeps' --eval"
    sweep.stop()
    assert sweep.status().message.endswith("inat-ft sweep run small --sweeps-dir 'my sweeps'")
    with pytest.raises(RecordError) as caught:
        choose(sweep)
    assert "inat-ft sweep run small --sweeps-dir 'my sweeps'" in caught.value.hint
    monkeypatch.setenv("INAT_FT_SWEEPS_DIR", "my sweeps")
    assert open_sweep("small", Path("my sweeps")).next_command("run") == "inat-ft sweep run small"
