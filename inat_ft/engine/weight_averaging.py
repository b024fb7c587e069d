"""Weights that are validated and kept instead of those of the last step: averages over time, or with the start."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import TrainingPlan
from inat_ft.errors import UsageError

_COUNT = "number averaged"


class WeightAverage:
    """No average: the weights as trained.

    held: tensors that a checkpoint must keep, by name; changed in place.
    """

    refreshes_norms = False
    """Whether the statistics of BatchNorm must be measured anew for the averaged weights."""

    def __init__(self, plan: TrainingPlan, config: OptimConfig, held: dict[str, Tensor]) -> None:
        self.plan, self.config, self.held = plan, config, held
        self.names = plan.trainable_state_names()

    def before_epoch(self, epoch: int) -> None:
        """Called before an epoch, counted from 0."""

    def after_step(self) -> None:
        """Called after each step."""

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """The averaged tensors by their names in the network's state; none where there is nothing to average."""
        return {}

    def _now(self, names: Iterable[str]) -> dict[str, Tensor]:
        state = self.plan.net.state_dict()
        return {name: state[name].detach() for name in names}

    def _count(self) -> int:
        """How many have been averaged, this one included."""
        count = self.held.setdefault(_COUNT, torch.zeros((), dtype=torch.int64))
        count += 1
        return int(count)

    def _mix(self, share: float) -> None:
        """Move what is held towards the present weights by a share in 0..1. What is no fraction is taken over."""
        for name, now in self._now(self.names).items():
            if name not in self.held:
                self.held[name] = now.clone()
            elif now.is_floating_point():
                self.held[name].lerp_(now, share)
            else:
                self.held[name].copy_(now)

    def _averaged(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.held.items() if name != _COUNT}


class Ema(WeightAverage):
    """Exponential moving mean over steps; it forgets faster in the first steps, (1 + t) / (10 + t)."""

    def after_step(self) -> None:
        """Take in the present weights."""
        count = self._count()
        self._mix(1 - min(self.config.ema_decay, (1 + count) / (10 + count)))

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """The mean so far."""
        return self._averaged()


class Swa(WeightAverage):
    """The mean of the weights after each of the last epochs, two at least. Izmailov et al. 2018, arXiv 1803.05407."""

    refreshes_norms = True

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """The mean so far, from the first of those epochs on."""
        first = min(int(self.config.swa_from * self.config.epochs), self.config.epochs - 2)
        if epoch < first:
            return {}
        self._mix(1 / self._count())
        return self._averaged()


class WiseFt(WeightAverage):
    """A mix of the weights with those from before the backbone learned. Wortsman et al. 2022, arXiv 2109.01903.

    A head that had not learned by then started from nothing, and is kept as it is.
    """

    def before_epoch(self, epoch: int) -> None:
        """Remember the start, once the backbone begins to learn."""
        if self.held or self.plan.frozen_prefix(epoch) == len(self.plan.net.stages):
            return
        names = self.names if epoch else [name for name in self.names if not name.startswith("head.")]
        self.held.update({name: tensor.clone() for name, tensor in self._now(names).items()})

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Start and end mixed: alpha of the end."""
        now = self._now(self.held)
        return {
            name: start.lerp(now[name], self.config.alpha) if start.is_floating_point() else now[name]
            for name, start in self.held.items()
        }


def make_average(plan: TrainingPlan, config: OptimConfig, held: dict[str, Tensor]) -> WeightAverage:
    """The average that the configuration names. Raises UsageError when there is nothing to average."""
    kinds: dict[str, type[WeightAverage]] = {"none": WeightAverage, "ema": Ema, "swa": Swa, "wise-ft": WiseFt}
    stages = len(plan.net.stages)
    if config.average == "wise-ft" and all(plan.frozen_prefix(epoch) == stages for epoch in range(len(plan.epochs))):
        raise UsageError(
            "--average wise-ft mixes the backbone with its start, and here only the head learns", "try: --mode lp-ft"
        )
    return kinds[config.average](plan, config, held)
