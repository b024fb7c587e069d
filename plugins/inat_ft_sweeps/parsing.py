"""Read and validate a sweep file, and apply its strategies to its networks, before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from inat_ft.config import build_strategy
from inat_ft.errors import ConfigError, InatFtError, PluginError, UsageError
from inat_ft.registry import STRATEGIES, call_plugin, get, plugins
from inat_ft.settings import Override, read_yaml
from inat_ft.validation import format_validation_error
from inat_ft_sweeps.space import MODE, Params, SweepSpec, options, target

if TYPE_CHECKING:
    from inat_ft.models.net import Net

_CHECKED_POINTS = 500
BUILT_IN: dict[str, Any] = {
    "method": "bayes",
    "metric": {"name": "val_accuracy", "goal": "maximize"},
    "run_cap": 22,
    "parameters": {
        "epochs": {"values": [5, 10]},
        "dropout": {"values": [0.0, 0.2, 0.3]},
        "batch_size": {"values": [32, 64]},
        "lr": {"values": [1e-3, 1e-4]},
        "mode": {"value": "head"},
        "patience": {"value": 3},
    },
}
"""The sweep of `inat-ft sweep create` without a file."""


def read_spec(file: Path | None, fixed: Sequence[Override] = (), raw: Any = BUILT_IN) -> SweepSpec:
    """Return the sweep of a file, or of `raw`, with some settings fixed. Raises ConfigError naming the key and the value."""
    spec = parse_spec(read_yaml(file) if file else raw)
    if fixed:
        spec = _fix(spec, dict(fixed))
    check_values(spec)
    return spec


def _fix(spec: SweepSpec, fixed: Mapping[str, Any]) -> SweepSpec:
    """Return the sweep with some keys fixed. If the mode is fixed, parameters of other modes are removed."""
    kept, named, mode = {}, dict(zip(fixed, fixed, strict=True)), fixed.get(MODE)
    for name, parameter in spec.parameters.items():
        owner, key = target(name)
        other = mode and (owner not in (None, mode) or (key.startswith("strategy.") and key not in options(mode)))
        if key in fixed:
            named[key] = named[key] if owner else name
        elif not other:
            kept[name] = parameter.model_dump(exclude_unset=True)
    values = {named[key]: {"value": value} for key, value in fixed.items()}
    return parse_spec({**spec.to_wandb(), "parameters": kept | values})


def parse_spec(raw: Any) -> SweepSpec:
    """Return the sweep in a mapping. Raises ConfigError naming the key."""
    try:
        return SweepSpec.model_validate(_numbers(raw))
    except ValidationError as error:
        lines = format_validation_error(error, SweepSpec).message.splitlines()
        for place, finding in enumerate(error.errors()):
            key = ".".join(str(part) for part in finding["loc"])
            if finding["type"] == "value_error" and not lines[place].startswith(key):  # a validator in this package
                lines[place] = f"{key}: {lines[place]}"
        hint = "the format is W&B's: https://docs.wandb.ai/models/sweeps/define-sweep-configuration"
        raise ConfigError("\n".join(lines), hint) from None


def _numbers(raw: Any) -> Any:
    """Convert strings such as `1e-3`, which YAML 1.1 does not read as numbers, to numbers, at every depth."""
    if isinstance(raw, Mapping):
        return {str(key): _numbers(value) for key, value in raw.items()}
    if isinstance(raw, list):
        return [_numbers(value) for value in raw]
    if isinstance(raw, str) and raw[:1] in set("+-.0123456789"):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(raw)
    return raw


def check_values(spec: SweepSpec) -> None:
    """Validate every possible value. Raises ConfigError naming the parameter and the value."""
    for point in probe_points(spec):
        try:
            spec.config(point)
        except InatFtError as error:
            raise invalid_trial(spec, point, error) from None


def invalid_trial(spec: SweepSpec, point: Params, error: InatFtError) -> ConfigError:
    exponents = [name for name, p in spec.varying.items() if p.kind == "log_uniform" and name in point]
    note = f"min and max of log_uniform ({', '.join(exponents)}) are exponents of e; for values use log_uniform_values"
    shown = ", ".join(f"{name}={value}" for name, value in {**spec.fixed, **point}.items())
    hint = "\n".join(line for line in (error.hint, note if exponents else "") if line)
    return ConfigError(f"a trial of this sweep is invalid:\n{error.message}\nthe trial: {shown}", hint)


def probe_points(spec: SweepSpec) -> Iterator[Params]:
    """Yield every point of a small space; of a large one, points in which each value occurs once."""
    points = spec.points()
    if points is not None and len(points) <= _CHECKED_POINTS:
        yield from points
        return
    for mode in spec.modes or (None,):
        space = spec.space(mode)
        first = {name: parameter.extremes()[0] for name, parameter in space.items()}
        yield from ({**first, name: value} for name, p in space.items() for value in p.extremes())


def check_models(spec: SweepSpec) -> None:
    """Apply each strategy, with each of its options, to each network with random weights.

    Raises ConfigError naming the trial. Does nothing for a sweep that sets neither the network nor a strategy's options.
    """
    from inat_ft.engine.plan import make_plan
    from inat_ft.models.build import build_model

    points = list(probe_points(spec))
    keys = {key for point in points for key, _ in spec.overrides(point)}
    checked = "model.backbone", *(key for key in keys if key.startswith("strategy.") and key != MODE)
    if len(spec.modes) < 2 and not keys.intersection(checked):
        return
    nets: dict[str, Net] = {}
    seen = set()
    for point in points:
        config = spec.config(point)
        network = config.model.model_dump_json(exclude={"dropout"}) + str(config.data.image_size)
        kind = network, config.strategy.model_dump_json()
        if kind in seen:
            continue
        seen.add(kind)
        try:
            if network not in nets:
                nets[network] = build_model(config.model, 2, config.seed, config.data.image_size, load=False).net
            net, strategy = copy.deepcopy(nets[network]), build_strategy(config.strategy)
            scores = {net.original_name(name): 1.0 for name, _ in net.named_parameters()}
            strategy = call_plugin(strategy.resolve, net, lambda scores=scores: scores)
            make_plan(strategy, call_plugin(strategy.adapt, net), 1)
        except InatFtError as error:
            raise invalid_trial(spec, point, error) from None


def require_split(spec: SweepSpec) -> None:
    split = dict(spec.overrides({})).get("data.split")
    if split is not None and not Path(str(split)).is_file():
        hint = "create it: inat-ft split DATA; or use another: --set data.split=FILE"
        raise UsageError(f"no such split: {split}", hint)


def strategy_sweep() -> tuple[dict[str, Any], dict[str, str]]:
    """Return a sweep over the installed strategies, each in its `search_space`, and why others are skipped."""
    spaces: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name in plugins(STRATEGIES):
        try:
            space = getattr(get(STRATEGIES, name).load(), "search_space", {})
        except PluginError as error:
            skipped[name] = error.message
            continue
        if space:
            spaces[name] = {"parameters": dict(space)}
        else:
            skipped[name] = "it has no `search_space`"
    common = {"mode": {"values": list(spaces)}, "patience": {"value": 3}}
    sweep = {
        "method": "bayes",
        "metric": {"name": "val_accuracy", "goal": "maximize"},
        "parameters": common | spaces,
    }
    return sweep, skipped
