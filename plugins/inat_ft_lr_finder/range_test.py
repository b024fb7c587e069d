"""The learning-rate range test (Smith 2017, arXiv 1506.01186): the loss at learning rates that rise from step to step."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from inat_ft_figures.figures import BLUE, GREY, ORANGE, logarithmic, new_figure, plotting, save

from inat_ft.config import RunConfig
from inat_ft.engine.device import Compute, reproducible
from inat_ft.engine.fit import Data, copies, epoch_generator, layers_seed, restore
from inat_ft.engine.forward import Forward, StepConfig
from inat_ft.engine.loops import Batch, local_batches, step
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan
from inat_ft.setup import Directories, TrainCallbacks, make_loaders, make_step_config, prepare
from inat_ft.threads import decoders
from inat_ft.training import share_batches

_LOWEST, _HIGHEST = 1e-6, 10.0
_SMOOTHING = 3
_EXPLODED = 4.0
_MIN_DECREASE = 0.05


@dataclass(frozen=True)
class LRFinderResult:
    """The learning rate and the training loss in nats of each step, and the losses smoothed.

    suggestion: the learning rate at which the smoothed loss falls fastest; None if it does not fall.
    """

    lrs: list[float]
    losses: list[float]
    smooth: list[float]
    suggestion: float | None


def find_lr(config: RunConfig, directories: Directories, callbacks: TrainCallbacks | None = None) -> LRFinderResult:
    """Run a learning-rate range test of a configuration. Only the caches are written."""
    with reproducible(config.compute.deterministic), decoders(config.compute.workers) as pool:
        setup = prepare(config)
        callbacks = share_batches(setup, callbacks or TrainCallbacks())
        loaders = make_loaders(setup, directories, callbacks, pool)
        return lr_range_test(loaders, setup.plan, make_step_config(setup, callbacks.log), setup.compute)


def lr_range_test(
    data: Data, plan: TrainingPlan, step_config: StepConfig, compute: Compute, steps: int = 100
) -> LRFinderResult:
    """Train what is trainable in the first epoch with learning rates from 1e-6 to 10, evenly spaced on a log scale.

    The test ends when the loss is four times that of the first step. The weights of the network are restored.
    """
    from scipy.ndimage import gaussian_filter1d

    net, prefix = plan.net, plan.frozen_prefix(0)
    before = copies(net, plan.trainable_state_names())
    net.set_trainable(plan.epochs[0].scales)
    torch.manual_seed(layers_seed(step_config.seed, 0))
    optimizer = make_optimizer(plan.epochs[0], step_config.config)
    step_config.compile = False  # too few steps
    forward = Forward(net, data.train(prefix, 0), prefix, compute, step_config.tail(net, prefix, compute))
    net.train()
    lrs: list[float] = []
    losses: list[float] = []
    with forward.single_threaded():
        for batch in _endless(forward, step_config, data):
            lrs.append(_LOWEST * (_HIGHEST / _LOWEST) ** (len(lrs) / (steps - 1)))
            for group in optimizer.param_groups:
                group["lr"] = lrs[-1] * group["lr_scale"]
            sums = compute.process_group.all_reduce(step(forward, step_config, optimizer, batch))
            losses.append(float(sums[0]) / batch.size)
            if len(lrs) == steps or not losses[-1] <= _EXPLODED * losses[0]:
                break
    restore(net, before)
    worst = _EXPLODED * losses[0]
    smooth = gaussian_filter1d(np.nan_to_num(losses, nan=worst, posinf=worst), _SMOOTHING).tolist()
    return LRFinderResult(lrs, losses, smooth, steepest_descent_lr(lrs, smooth))


def _endless(forward: Forward, step_config: StepConfig, data: Data) -> Iterator[Batch]:
    for epoch in itertools.count():
        order = data.sample_order(epoch_generator(step_config.seed, epoch, "order"))
        yield from local_batches(forward, step_config, order)


def steepest_descent_lr(lrs: list[float], losses: list[float]) -> float | None:
    """Return the learning rate at which the loss falls fastest, per logarithm of the rate, before its minimum.

    Returns None if the loss falls by less than 5%.
    """
    lowest = losses.index(min(losses))
    if lowest < 2 or losses[0] - losses[lowest] < _MIN_DECREASE * losses[0]:
        return None
    slopes = [(losses[at + 1] - losses[at - 1]) / math.log(lrs[at + 1] / lrs[at - 1]) for at in range(1, lowest)]
    return lrs[1 + slopes.index(min(slopes))]


def draw_lr_range(found: LRFinderResult, stem: Path) -> Path:
    """Draw the losses of a learning-rate range test as PNG and SVG, and return the PNG."""
    with plotting():
        figure, axes = new_figure(6.4, 3.6)
        axes.plot(found.lrs, found.losses, ".", color=GREY, markersize=3, label="Each step")
        axes.plot(found.lrs, found.smooth, color=BLUE, label="Smoothed")
        if found.suggestion is not None:
            axes.axvline(found.suggestion, color=ORANGE, linestyle="--", label=f"Suggestion: {found.suggestion:.1e}")
        finite = np.array(found.losses)[np.isfinite(found.losses)]
        axes.set(xlabel="Learning rate (logarithmic)", ylabel="Training loss in nats")
        logarithmic(axes)
        axes.set_ylim(0.9 * finite.min(), 1.1 * max(2 * found.losses[0], finite.min()))
        axes.legend(frameon=False)
    return save(figure, stem)[0]
