"""A soup of a sweep's runs: what may be in it, what it is the mean of, and that it is a run like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from inat_ft_soup.soup import make_soup
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.study import Sweep
from inat_ft_sweeps.worker import run_worker
from safetensors.torch import load_file

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.records import read_record
from inat_ft.training import TrainCallbacks

FIXED = {
    "data.image_size": 32,
    "model.backbone": "cnn",
    "model.filters": 16,
    "model.weights": "none",
    "compute.precision": "fp32",
    "compute.device": "cpu",
    "batch_size": 8,
    "epochs": 1,
}


def trained(manifest: Path, folder: Path, **parameters: list[object]) -> Sweep:
    varying = {name.replace("__", "."): {"values": values} for name, values in parameters.items()}
    fixed = {key: {"value": value} for key, value in {**FIXED, "data.split": str(manifest)}.items()}
    sweep = create(parse_spec({"method": "grid", "parameters": fixed | varying}), folder / "sweeps", "mix")
    run_worker(
        sweep,
        TrainingObjective("val_accuracy", folder / "cache", lambda config: TrainCallbacks()),
        log=lambda line: None,
    )
    return sweep


@pytest.mark.slow
def test_a_soup_is_the_mean_of_runs_with_one_start_and_a_run_itself(manifest_file: Path, tmp_path: Path) -> None:
    sweep = trained(manifest_file, tmp_path, seed=[0, 1], lr=[1e-5, 1.02e-5])  # so near that their mean is as good

    soup = make_soup(sweep, tmp_path / "runs", tmp_path / "cache")

    assert soup.num_candidates == 2
    assert len(soup.members) >= 2
    seeds = {trial.run: trial.params["seed"] for trial in sweep.trials()}
    other = {run for run, seed in seeds.items() if seed != seeds[soup.members[0]]}
    assert set(soup.excluded) == other
    assert all("its seed (and so its random head) differs" in why for why in soup.excluded.values())

    mixed = load_file(soup.directory / "model.safetensors")
    parts = [load_file(sweep.runs / run / "model.safetensors") for run in soup.members]
    for name, tensor in mixed.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack([part[name] for part in parts]).mean(0))
    assert not torch.equal(mixed["fc.weight"], parts[0]["fc.weight"])

    record, _ = read_record(soup.directory)
    right = read_predictions(soup.directory / "predictions-val.csv").correct
    assert record.val_accuracy == pytest.approx(float(np.mean(right)))
    assert record.val_accuracy >= soup.best_alone
    assert soup.members[1] in record.notes[0]
    again = evaluate_run(soup.directory, "val").evaluation.metrics["accuracy"].value
    assert again == pytest.approx(record.val_accuracy)
    for run in (soup.directory, sweep.runs / soup.members[0]):
        evaluate_run(run, "test")
    found = compare([soup.directory / "record.json", sweep.runs / soup.members[0] / "record.json"])
    assert found.pairs[0].difference is not None

    with pytest.raises(UsageError, match="exists already"):
        make_soup(sweep, tmp_path / "runs", tmp_path / "cache")


@pytest.mark.slow
def test_runs_from_different_heads_make_no_soup(manifest_file: Path, tmp_path: Path) -> None:
    sweep = trained(manifest_file, tmp_path, seed=[0, 1])

    with pytest.raises(RecordError, match="no two runs of sweep mix have the same initialization"):
        make_soup(sweep, tmp_path / "runs", tmp_path / "cache")
    assert not (tmp_path / "runs").exists()


def test_the_frozen_layers_are_shared_and_the_mean_of_heads_is_exact(manifest_file: Path, tmp_path: Path, cli) -> None:
    sweep = trained(manifest_file, tmp_path, mode=["head"], lr=[1e-3, 1.01e-3])

    soup = make_soup(sweep, tmp_path / "runs", tmp_path / "cache")

    assert len(soup.members) == 2
    mixed, part = (load_file(folder / "model.safetensors") for folder in (soup.directory, sweep.runs / "mix-00"))
    assert [name for name in mixed if not torch.equal(mixed[name], part[name])] == ["fc.bias", "fc.weight"]

    place = ("--cache-dir", tmp_path / "cache")
    found = cli("sweep", "soup", *place, "--name", "again", "--json").json
    assert found["members"] == soup.members and found["candidates"] == 2 and found["left_out"] == {}
    assert (found["directory"], found["val_accuracy"]) == ("runs/again", soup.record.val_accuracy)
    (sweep.runs / "mix-00" / "model.safetensors").rename(tmp_path / "kept")
    refused = cli("sweep", "soup", *place, "--name", "other")
    assert refused.code == 1 and "mix-00: its run is not on this machine" in refused.err
    (tmp_path / "kept").rename(sweep.runs / "mix-00" / "model.safetensors")
    shown = cli("sweep", "soup", *place, "--name", "other")
    assert "(2 of 2 runs with the same initialization)" in shown.out and "run:  runs/other" in shown.out
    assert "optimistically biased" in shown.err and "next: inat-ft eval runs/other" in shown.err
    assert cli("sweep", "soup", *place, "--name", "other").code == 2
