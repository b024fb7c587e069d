"""Learning-rate range test: the loss while the learning rate rises from step to step. Smith 2017, arXiv 1506.01186."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from inat_ft.engine.device import Compute
from inat_ft.engine.fit import Data, copies, epoch_generator, restore, seed_layers
from inat_ft.engine.loops import Forward, StepConfig, own_batches, step
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.models.net import Net

_LOWEST, _HIGHEST = 1e-6, 10.0
_WIDTH = 3
_EXPLODED = 4.0
_FALLS = 0.05


@dataclass(frozen=True)
class LRFinderResult:
    """What a range test found.

    lrs, losses: for each step the learning rate and the training loss in nats; smooth: the losses smoothed; suggestion:
    the rate at which the smoothed loss falls fastest, None where it does not fall.
    """

    lrs: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float | None


def lr_range_test(
    net: Net, data: Data, plan: TrainingPlan, step_config: StepConfig, compute: Compute, seed: int, steps: int = 100
) -> LRFinderResult:
    """Take steps of what learns in the first epoch at rates that rise evenly on a logarithmic scale from 1e-6 to 10.

    It ends when the loss is four times what it was. The network is left as it was.
    """
    from scipy.ndimage import gaussian_filter1d

    before = copies(net, plan.trainable_state_names())
    prefix = plan.frozen_prefix(0)
    net.set_trainable(plan.epochs[0].parameters)
    seed_layers(seed, 0)
    optimizer = make_optimizer(plan.epochs[0], step_config.config)
    forward = Forward(net, data.train(prefix, 0), prefix, compute)
    net.train()
    lrs: list[float] = []
    losses: list[float] = []
    with forward.single_threaded():
        for size, inputs, labels in _endless(forward, step_config, data, seed):
            lrs.append(_LOWEST * (_HIGHEST / _LOWEST) ** (len(lrs) / (steps - 1)))
            for group in optimizer.param_groups:
                group["lr"] = lrs[-1] * group["lr_scale"]
            loss, _ = compute.process_group.all_reduce(
                step(forward, step_config, optimizer, inputs, labels, size)
            ).tolist()
            losses.append(loss / size)
            if len(lrs) == steps or not losses[-1] <= _EXPLODED * losses[0]:
                break
    restore(net, before)
    smooth = gaussian_filter1d(np.nan_to_num(losses, nan=_EXPLODED * losses[0], posinf=_EXPLODED * losses[0]), _WIDTH)
    return LRFinderResult(lrs, losses, smooth.tolist(), steepest_descent_lr(lrs, smooth.tolist()))


def _endless(forward: Forward, step_config: StepConfig, data: Data, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    for epoch in itertools.count():
        yield from own_batches(forward, step_config, data.sample_order(epoch_generator(seed, epoch, "order")))


def steepest_descent_lr(lrs: list[float], losses: list[float]) -> float | None:
    """The rate at which the loss falls fastest, by the logarithm of the rate, before it is lowest.

    None where it falls by less than a twentieth of what it was.
    """
    lowest = losses.index(min(losses))
    if lowest < 2 or losses[0] - losses[lowest] < _FALLS * losses[0]:
        return None
    slopes = [(losses[at + 1] - losses[at - 1]) / math.log(lrs[at + 1] / lrs[at - 1]) for at in range(1, lowest)]
    return lrs[1 + slopes.index(min(slopes))]
