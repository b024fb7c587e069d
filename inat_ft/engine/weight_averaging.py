"""Averages of weights that are validated and saved in place of the weights of the last step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import TrainingPlan
from inat_ft.errors import UsageError

_COUNT = "number averaged"


class WeightAverage:
    """No average: keep the weights of the last step.

    state: tensors by name, updated in place; a checkpoint must save them.
    """

    needs_update_bn = False
    """Whether the BatchNorm statistics must be computed again for the averaged weights."""

    def __init__(self, plan: TrainingPlan, config: OptimConfig, state: dict[str, Tensor]) -> None:
        self.plan, self.config, self.state = plan, config, state
        tensors = plan.net.state_dict()
        self.current = {name: tensors[name].detach() for name in plan.trainable_state_names()}

    def before_epoch(self, epoch: int) -> None:
        """Prepare an epoch, counted from 0."""

    def after_step(self) -> None:
        """Update the average after a step."""

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Return the averaged tensors by name after `epoch` epochs, or an empty dictionary if there is no average."""
        return {}

    def _count(self) -> int:
        """Return how many weights are in the average, including the current ones."""
        count = self.state.setdefault(_COUNT, torch.zeros((), dtype=torch.int64))
        count += 1
        return int(count)

    def _update(self, average: Callable[..., None], num_averaged: int) -> None:
        """Add the current weights to the average; copy tensors that are not floating-point, such as counters."""
        new = {name: tensor.clone() for name, tensor in self.current.items() if name not in self.state}
        self.state.update(new)
        pairs = [(self.state[name], tensor) for name, tensor in self.current.items()]
        floats = [pair for pair in pairs if pair[1].is_floating_point()]
        average([old for old, _ in floats], [now for _, now in floats], num_averaged)
        for old, now in pairs:
            if not now.is_floating_point():
                old.copy_(now)

    def _averaged(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state.items() if name != _COUNT}


class Ema(WeightAverage):
    """Exponential moving average over steps, with a decay of at most (1 + t) / (10 + t) in step t."""

    def after_step(self) -> None:
        """Add the weights of this step."""
        count = self._count()
        decay = min(self.config.ema_decay, (1 + count) / (10 + count))
        self._update(get_ema_multi_avg_fn(decay), count - 1)  # type: ignore[no-untyped-call]

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Return the average over all steps so far."""
        return self._averaged()


class Swa(WeightAverage):
    """Mean of the weights after each of the last epochs, at least two. Izmailov et al. 2018, arXiv 1803.05407."""

    needs_update_bn = True

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Add the weights of this epoch and return the mean, from the first of the last epochs on."""
        if epoch < min(int(self.config.swa_from * self.config.epochs), self.config.epochs - 2):
            return {}
        self._update(get_swa_multi_avg_fn(), self._count() - 1)  # type: ignore[no-untyped-call]
        return self._averaged()


class WiseFt(WeightAverage):
    """Interpolation of the weights before and after fine-tuning the backbone. Wortsman et al. 2022, arXiv 2109.01903.

    The head is interpolated only if it was trained before the backbone.
    """

    def before_epoch(self, epoch: int) -> None:
        """Save the weights before the first epoch that trains the backbone."""
        if self.state or self.plan.frozen_prefix(epoch) == len(self.plan.net.stages):
            return
        start = {name: tensor for name, tensor in self.current.items() if epoch or not name.startswith("head.")}
        self.state.update({name: tensor.clone() for name, tensor in start.items()})

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Return the interpolated weights: `alpha` is the share of the fine-tuned ones."""
        return {
            name: start.lerp(self.current[name], self.config.alpha) if start.is_floating_point() else self.current[name]
            for name, start in self.state.items()
        }


def make_average(plan: TrainingPlan, config: OptimConfig, state: dict[str, Tensor]) -> WeightAverage:
    """Return the average that the configuration names. Raises UsageError if wise-ft has no backbone to average."""
    classes: dict[str, type[WeightAverage]] = {"none": WeightAverage, "ema": Ema, "swa": Swa, "wise-ft": WiseFt}
    stages = len(plan.net.stages)
    if config.average == "wise-ft" and all(plan.frozen_prefix(epoch) == stages for epoch in range(len(plan.epochs))):
        raise UsageError(
            "--average wise-ft averages the backbone with its pretrained weights, but only the head is trained",
            "train the backbone too: --mode lp-ft",
        )
    return classes[config.average](plan, config, state)
