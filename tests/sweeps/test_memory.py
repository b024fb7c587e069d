"""A sweep of many trials needs no more memory than one."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from inat_ft_sweeps.folder import create
from inat_ft_sweeps.objective import TrainingObjective
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.worker import run_worker

from inat_ft.models import build
from inat_ft.models.net import Net
from inat_ft.training import TrainCallbacks


@pytest.mark.slow
def test_the_network_of_a_trial_is_gone_before_the_next_one_is_built(
    manifest_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()
    found: list[int] = []
    real = build.build_net

    def watched(*how: object, **more: object) -> Net:
        found.append(len(alive))
        net = real(*how, **more)
        alive.update(net.stages.values())
        return net

    monkeypatch.setattr(build, "build_net", watched)
    fixed = {
        "data.split": str(manifest_file),
        "data.image_size": 32,
        "backbone": "resnet18",
        "weights": "none",
        "precision": "fp32",
        "epochs": 1,
    }
    parameters = {key: {"value": value} for key, value in fixed.items()} | {"lr": {"values": [1e-3, 1e-4, 1e-5]}}
    sweep = create(parse_spec({"method": "grid", "parameters": parameters}), tmp_path, "many")
    gc.disable()  # or Python might do it by chance
    try:
        run_worker(
            sweep,
            TrainingObjective("val_accuracy", tmp_path / "cache", lambda config: TrainCallbacks()),
            log=lambda line: None,
        )
    finally:
        gc.enable()
        gc.unfreeze()
    assert found == [0, 0, 0]
