"""How long each part takes on this machine, measured on a few batches of the user's own images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inat_ft.config import RunConfig
from inat_ft.data.manifest import Manifest
from inat_ft.engine.device import release_memory
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit
from inat_ft.errors import InatFtError
from inat_ft.setup import Directories, Setup, SharedSetup, TrainCallbacks, make_loaders, make_step_config, prepare
from inat_ft.threads import decoders
from inat_ft_tune.planner import Cost

_FEWEST, _BATCHES = 8, 2

_LEAST_S, _WRITING = 0.5, 0.2
NO_TIME = "there was no time to measure it"


@dataclass(frozen=True)
class Measured:
    """The costs of the head and of each strategy, by name; skipped: strategies that cannot be used, and why."""

    head: Cost
    strategies: Mapping[str, Cost]
    skipped: Mapping[str, str]


def measure_costs(
    configs: Mapping[str, RunConfig], cache: Path, seconds: float, tick: Callable[[str], object] = lambda name: None
) -> Measured:
    """Measure a few batches of each strategy, in about this time.

    configs: the settings of each strategy; `head` is the first. Costs are upper estimates: the epoch of a strategy that
    trains different layers in turn is the one that trains the most.
    """
    prepare(configs["head"], load_weights=False)  # imports are no measurement
    started = time.monotonic()
    found: dict[str, Cost] = {}
    skipped: dict[str, str] = {}
    for place, (name, config) in enumerate(configs.items()):
        left = seconds - (time.monotonic() - started)
        if left < -seconds / 2 and place:
            skipped[name] = NO_TIME
            continue
        tick(name)
        release_memory()
        share = max(_LEAST_S, left / (len(configs) - place))
        try:
            found[name] = _Measurement(config, cache).cost(share, seed=place)
        except InatFtError as error:
            if name == "head":
                raise
            skipped[name] = error.message
    release_memory()
    return Measured(found.pop("head"), found, skipped)


class _Measurement:
    """Times one epoch of a few images with the loaders and the training loop of a run."""

    def __init__(self, config: RunConfig, cache: Path) -> None:
        started = time.perf_counter()
        self.setup = prepare(config)
        self.start = time.perf_counter() - started
        self.manifest, self.directories = self.setup.manifest, Directories(Path(), cache)
        self.images = len(self.manifest.rows("train")) + len(self.manifest.rows("val"))

    def cost(self, seconds: float, seed: int) -> Cost:
        """Return the cost for all images, measured in about this time with two numbers of images.

        Two numbers separate what an epoch costs from what an image costs.
        """
        self._epoch(sample(self.manifest, _FEWEST, 3 * seed))  # warm up: kernels, and how frozen layers are computed
        few = self._epoch(sample(self.manifest, _FEWEST, 3 * seed + 1))
        number = int(seconds / max(1e-6, sum(few) / _FEWEST))
        number = max(2 * _FEWEST, min(number, _BATCHES * self.setup.config.optim.batch_size))
        chosen = sample(self.manifest, number, 3 * seed + 2)
        many = self._epoch(chosen)
        sizes = _FEWEST, len(chosen.rows("train")), len(self.manifest.rows("train"))
        once = extrapolate(few[0] - few[1], many[0] - many[1], sizes)
        return Cost(once, self.start + _WRITING, extrapolate(few[1], many[1], sizes))

    def _epoch(self, chosen: Manifest) -> tuple[float, float]:
        """Return the seconds of an epoch of these images, the first time and again."""
        setup: Setup = replace(self.setup, manifest=chosen)
        plan = setup.plan
        number = min(range(len(plan.epochs)), key=plan.frozen_prefix)
        with decoders(setup.config.compute.workers) as pool:
            loaders = make_loaders(setup, self.directories, TrainCallbacks(), pool, SharedSetup())
            step = make_step_config(setup, lambda line: None)
            state = TrainState(EarlyStopping(0), epoch=number)
            started = time.perf_counter()
            tasks = fit(loaders, plan, step, setup.compute, state)
            task = next(tasks)
            task.run()
            between = time.perf_counter()
            task.run()
            ended = time.perf_counter()
            tasks.close()
        return between - started, ended - between


def extrapolate(few: float, many: float, sizes: tuple[int, int, int]) -> float:
    """Return the seconds for the last size, from those for the two others.

    The increase per image is at least half of the mean per image: with two short measurements it may be mostly noise.
    """
    small, large, whole = sizes
    few, many = max(0.0, few), max(0.0, many)
    slope = (many - few) / (large - small) if large > small else 0.0
    return many + max(slope, many / large / 2) * (whole - large)


def sample(manifest: Manifest, number: int, seed: int) -> Manifest:
    """Return some images of a manifest: at most this number for training, and validation images in proportion."""
    rng, train, val = np.random.default_rng(seed), manifest.rows("train"), manifest.rows("val")
    number = min(number, len(train))
    also = min(len(val), max(1, round(number * len(val) / len(train))))
    rows = np.sort(np.concatenate([rng.choice(train, number, False), rng.choice(val, also, False)]))

    def pick(values: Sequence[str]) -> list[str]:
        return [values[row] for row in rows.tolist()]

    return replace(
        manifest,
        paths=pick(manifest.paths),
        labels=manifest.labels[rows],
        subsets=manifest.subsets[rows],
        hashes=pick(manifest.hashes),
        groups=pick(manifest.groups),
        fingerprint="",
    )
