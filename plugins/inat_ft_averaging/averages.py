"""Averages of weights that are validated and saved in place of the weights of the last step."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import TrainingPlan
from inat_ft.engine.weight_averaging import WeightAverage
from inat_ft.errors import UsageError

_COUNT = "number averaged"


class _Average(WeightAverage):
    """An average of the trainable tensors.

    state: tensors by name, updated in place; a checkpoint must save them.
    """

    def __init__(self, plan: TrainingPlan, config: OptimConfig, state: dict[str, Tensor]) -> None:
        self.plan, self.config, self.state = plan, config, state
        tensors = plan.net.state_dict()
        self.current = {name: tensors[name].detach() for name in plan.trainable_state_names()}
        if _COUNT in state:  # a checkpoint loads it on the device, where reading it would wait for the GPU
            state[_COUNT] = state[_COUNT].cpu()

    def _count(self) -> int:
        """Return how many weights are in the average, including the current ones."""
        return int(self.state.setdefault(_COUNT, torch.zeros((), dtype=torch.int64)).add_(1))

    def _update(self, average: Callable[..., None], num_averaged: int) -> None:
        """Add the current weights to the average, which has no integer tensors."""
        floats = {name: tensor for name, tensor in self.current.items() if tensor.is_floating_point()}
        for name, tensor in floats.items():
            if name not in self.state:
                self.state[name] = tensor.clone()
        average([self.state[name] for name in floats], list(floats.values()), num_averaged)

    def _averaged(self) -> dict[str, Tensor]:
        return {name: self.state.get(name, tensor) for name, tensor in self.current.items()}


class Ema(_Average):
    """Exponential moving average over steps, with a decay of at most (1 + t) / (10 + t) in step t."""

    def after_step(self) -> None:
        """Add the weights of this step."""
        count = self._count()
        decay = min(self.config.ema_decay, (1 + count) / (10 + count))
        self._update(get_ema_multi_avg_fn(decay), count - 1)  # type: ignore[no-untyped-call]  # torch declares no types here

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Return the average over all steps so far."""
        return self._averaged()


class Swa(_Average):
    """Mean of the weights after each of the last epochs, at least two. Izmailov et al. 2018, arXiv 1803.05407."""

    needs_update_bn = True

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Add the weights of this epoch and return the mean, from the first of the last epochs on."""
        if epoch < min(int(self.config.swa_from * self.config.epochs), self.config.epochs - 2):
            return {}
        self._update(get_swa_multi_avg_fn(), self._count() - 1)  # type: ignore[no-untyped-call]  # torch declares no types here
        return self._averaged()


class WiseFt(_Average):
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
    classes: dict[str, type[_Average]] = {"ema": Ema, "swa": Swa, "wise-ft": WiseFt}
    stages = len(plan.net.stages)
    if config.average == "wise-ft" and all(plan.frozen_prefix(epoch) == stages for epoch in range(len(plan.epochs))):
        raise UsageError(
            "--average wise-ft averages the backbone with its pretrained weights, but only the head is trained",
            "train the backbone too: --mode lp-ft",
        )
    return classes[config.average](plan, config, state)
