"""Trials that train only the head run in the same steps, and get the results of runs alone."""

from pathlib import Path

import pytest
from inat_ft_sweeps import worker
from inat_ft_sweeps.attempts import TrialState
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.study import Sweep
from inat_ft_sweeps.worker import run_worker

from inat_ft.models import build
from inat_ft.records import read_record
from inat_ft.settings import load_config
from inat_ft.training import Directories, TrainCallbacks, train


def make_sweep(
    folder: Path, manifest: Path, method: str = "grid", changes: dict[str, object] | None = None, **more: object
) -> Sweep:
    fixed = {
        "data.split": str(manifest),
        "data.image_size": 32,
        "model.backbone": "resnet18",
        "model.weights": "none",
        "strategy.name": "head",
        "precision": "fp32",
        "batch_size": 8,
    }
    parameters = {key: {"value": value} for key, value in fixed.items()}
    varying = {"lr": {"values": [1e-2, 1e-3]}, "dropout": {"values": [0.0, 0.3]}, "epochs": {"values": [1, 3]}}
    metric = {"name": "val_accuracy", "goal": "maximize"}
    spec = {"method": method, "metric": metric, "parameters": parameters | varying | (changes or {}), **more}
    return create(parse_spec(spec), folder / "sweeps", "s")


def objective(folder: Path) -> TrainingObjective:
    return TrainingObjective("val_accuracy", folder / "cache", lambda config: TrainCallbacks())


def test_trials_together_equal_runs_alone_and_share_one_network(
    manifest_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, real = [], build.build_net
    monkeypatch.setattr(build, "build_net", lambda *a, **k: built.append(1) or real(*a, **k))
    sweep = make_sweep(tmp_path, manifest_file)
    run_worker(sweep, objective(tmp_path), log=lambda line: None)
    assert len(built) == 1
    trials = sweep.trials()
    assert len(trials) == 8 and all(trial.state is TrialState.COMPLETE for trial in trials)
    for trial in trials[2], trials[7]:
        config = load_config(None, [*sweep.settings(trial.params), ("name", trial.run)])
        alone, _ = train(config, Directories(tmp_path / "alone", tmp_path / "cache"))
        together, _ = read_record(sweep.runs / trial.run)
        assert [epoch.val_accuracy for epoch in alone.history] == [epoch.val_accuracy for epoch in together.history]
        for one, other in zip(alone.history, together.history, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert alone.optimizer_steps == together.optimizer_steps and alone.parameters == together.parameters
        assert (sweep.runs / trial.run / "model.safetensors").exists()


def test_a_trial_that_fails_leaves_the_others_complete(manifest_file: Path, tmp_path: Path) -> None:
    sgd = {"optimizer": {"value": "sgd"}, "epochs": {"value": 2}, "dropout": {"value": 0.0}}
    sweep = make_sweep(tmp_path, manifest_file, changes={**sgd, "lr": {"values": [1e-2, 1e30]}})
    lines: list[str] = []
    run_worker(sweep, objective(tmp_path), log=lines.append)
    states = {trial.params["lr"]: trial.state for trial in sweep.trials()}
    assert states[1e-2] is TrialState.COMPLETE and states[1e30] is TrialState.FAILED, lines
    assert any("optim.lr: 1e+30 is more than the maximum" in line for line in lines)


def test_an_interruption_releases_all_trials(
    manifest_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, count = make_sweep(tmp_path, manifest_file), []

    def interrupt(epoch: object) -> None:
        count.append(epoch)
        if len(count) == 11:  # in the second epoch
            raise KeyboardInterrupt

    stopped = TrainingObjective("val_accuracy", tmp_path / "cache", lambda c: TrainCallbacks(on_epoch=interrupt))
    with pytest.raises(KeyboardInterrupt):
        run_worker(sweep, stopped, log=lambda line: None)
    assert not any(trial.state is TrialState.RUNNING for trial in sweep.trials())
    run_worker(sweep, objective(tmp_path), log=lambda line: None)
    trials = sweep.trials()
    assert len(trials) == 8 and all(trial.state is TrialState.COMPLETE for trial in trials)
    lengths = {trial.params["epochs"]: len(read_record(sweep.runs / trial.run)[0].history) for trial in trials}
    assert lengths == {1: 1, 3: 3}


@pytest.mark.parametrize(
    ("method", "more", "size"),
    [
        ("grid", {}, 32),
        ("random", {"run_cap": 6}, 6),
        ("bayes", {"run_cap": 4}, 4),
        ("bayes", {"run_cap": 7}, 7),
        ("grid", {"early_terminate": {"type": "hyperband", "min_iter": 1}}, 1),
    ],
)
def test_how_many_points_are_chosen_at_once(
    manifest_file: Path, tmp_path: Path, method: str, more: dict[str, object], size: int
) -> None:
    sweep = make_sweep(tmp_path, manifest_file, method, **more)
    assert worker._group_size(sweep) == (8 if size == 32 else size)


def test_workers_share_the_points(manifest_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_FT_SWEEP_WORKERS", "3")
    assert worker._group_size(make_sweep(tmp_path, manifest_file)) == 3
