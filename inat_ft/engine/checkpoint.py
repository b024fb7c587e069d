"""A training on disk: what is needed to go on from the last epoch. Holds tensors and plain values, never code."""

from __future__ import annotations

from pathlib import Path

import torch

from inat_ft.config import OptimConfig
from inat_ft.engine.fit import TrainState, restore
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.errors import InatFtError
from inat_ft.models.net import Net
from inat_ft.records import Epoch, atomic_write

_VERSION = 2


def save_training(file: Path, training: TrainState, net: Net, plan: TrainingPlan, identity: str) -> None:
    """Write the training atomically. identity: of everything that the run's numbers depend on."""
    if training.optimizer is None:
        raise ValueError("a training without an epoch has nothing to save")
    state = net.state_dict()
    content = {
        "version": _VERSION,
        "identity": identity,
        "epoch": training.epoch,
        "steps": training.steps,
        "weights": training.raw_weights or {name: state[name] for name in plan.trainable_state_names()},
        "average": training.average,
        "optimizer": training.optimizer.state_dict(),
        "history": [epoch.model_dump() for epoch in training.history],
        "stop": {"best": training.stop.best, "waited": training.stop.num_bad_epochs},
        "best": training.best,
        "best_epoch": training.best_epoch,
        "best_logits": training.best_logits,
        "stopped": training.stop_reason,
    }
    with (
        atomic_write(file) as temporary,
        temporary.open("wb") as out,
    ):  # opened here, so that a full disk is told as such
        torch.save(content, out)


class CheckpointError(InatFtError):
    """There is no going on from a checkpoint."""


def load_training(
    file: Path, training: TrainState, net: Net, plan: TrainingPlan, config: OptimConfig, identity: str
) -> None:
    """Bring network and training to where the file says they were. Nothing happens when there is no such file.

    Raises CheckpointError when the file is damaged or belongs to a run with other settings, data or weights.
    """
    if not file.exists():
        return
    try:
        content = torch.load(file, map_location=next(net.parameters()).device, weights_only=True)
        known = content["identity"]
    except Exception as error:  # unpicklers raise what they like on a damaged file
        cause = str(error) or "it is not whole"
        raise CheckpointError(
            f"cannot read the checkpoint {file}: {cause}", "start again under another --name"
        ) from error
    if content["version"] != _VERSION or known != identity:
        raise CheckpointError(
            f"{file} was made with other settings, images or weights than the run has now",
            "start again under another --name",
        )
    restore(net, content["weights"])
    training.average = {name: tensor if tensor.ndim else tensor.cpu() for name, tensor in content["average"].items()}
    training.epoch, training.steps = content["epoch"], content["steps"]
    learning = plan.epochs[training.epoch - 1]
    net.set_trainable(learning.parameters)
    training.optimizer = make_optimizer(learning, config)
    training.optimizer.load_state_dict(content["optimizer"])
    training.history = [Epoch.model_validate(epoch) for epoch in content["history"]]
    training.stop.best, training.stop.num_bad_epochs = tuple(content["stop"]["best"]), content["stop"]["waited"]
    training.best, training.best_epoch = content["best"], content["best_epoch"]
    training.best_logits, training.stop_reason = content["best_logits"].cpu(), content["stopped"]
