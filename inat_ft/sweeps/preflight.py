"""Checks of a sweep that need the network or the split, before anything is trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft.config import RunConfig, build_strategy
from inat_ft.errors import InatFtError, UsageError
from inat_ft.registry import STRATEGIES, plugin_errors
from inat_ft.sweeps.conditional import MODE
from inat_ft.sweeps.parsing import invalid_trial, probe_points
from inat_ft.sweeps.space import SweepSpec

if TYPE_CHECKING:
    from inat_ft.models.net import Net


def check_models(spec: SweepSpec) -> None:
    """Apply each strategy, with each of its options, to each network with random weights.

    Raises ConfigError naming the trial. Does nothing for a sweep that varies neither strategies nor their options.
    """
    points = list(probe_points(spec))
    keys = {key for point in points for key, _ in spec.overrides(point)}
    if len(spec.modes) < 2 and not any(key.startswith("strategy.") and key != MODE for key in keys):
        return
    nets: dict[str, Net] = {}
    seen = set()
    for point in points:
        config = spec.config(point)
        network = config.model.model_dump_json(exclude={"dropout"}) + str(config.data.image_size)
        kind = network, config.strategy.model_dump_json()
        if kind not in seen:
            seen.add(kind)
            try:
                nets[network] = nets.get(network) or _net(config)
                _try(config, copy.deepcopy(nets[network]))
            except InatFtError as error:
                raise invalid_trial(spec, point, error) from None


def _net(config: RunConfig) -> Net:
    from inat_ft.models.build import build_model

    return build_model(config.model, 2, config.seed, config.data.image_size, load=False).net


def _try(config: RunConfig, net: Net) -> None:
    from inat_ft.engine.plan import make_plan

    strategy = build_strategy(config.strategy)
    with plugin_errors(STRATEGIES, type(strategy), "resolve()"):
        strategy = strategy.resolve(net, lambda: {net.original_name(name): 1.0 for name, _ in net.named_parameters()})
    with plugin_errors(STRATEGIES, type(strategy), "adapt()"):
        net = strategy.adapt(net)
    make_plan(strategy, net, 1)


def require_split(spec: SweepSpec) -> None:
    """Raise UsageError if the split that the sweep names does not exist."""
    split = dict(spec.overrides({})).get("data.split")
    if split is not None and not Path(str(split)).is_file():
        raise UsageError(
            f"no such split: {split}", "create it: inat-ft split DATA; or use another: --set data.split=FILE"
        )
