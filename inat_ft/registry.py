"""Plugins in ten groups, found by name through entry points. Listing the names imports nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ParamSpec, TypeVar

from inat_ft.errors import ConfigError, InatFtError, PluginError, did_you_mean

STRATEGIES = "inat_ft.strategies"
BACKBONES = "inat_ft.backbones"
TRACKERS = "inat_ft.trackers"
METRICS = "inat_ft.metrics"
OPTIMIZERS = "inat_ft.optimizers"
EXPORTERS = "inat_ft.exporters"
SOURCES = "inat_ft.sources"
SWEEP_BACKENDS = "inat_ft.sweep_backends"
COMMANDS = "inat_ft.commands"
FEATURES = "inat_ft.features"

_GROUPS = {
    STRATEGIES: ("strategy", "inat_ft.strategies.base:Strategy"),
    BACKBONES: ("backbone", "inat_ft.models.base:Backbone"),
    TRACKERS: ("tracker", "inat_ft.tracking:Tracker"),
    METRICS: ("metric", "inat_ft.metrics.base:Metric"),
    OPTIMIZERS: ("optimizer", "inat_ft.optim:Optimizer"),
    EXPORTERS: ("exporter", "inat_ft.exporters:Exporter"),
    SOURCES: ("source", "inat_ft.data.sources.base:Source"),
    SWEEP_BACKENDS: ("sweep backend", "inat_ft_sweeps.base:SweepBackend"),
    COMMANDS: ("command", ""),  # functions or Typer apps
    FEATURES: ("feature", ""),  # functions or classes of inat-ft, for options of its commands
}
"""The entry-point groups: what messages call a plugin, and the base class, which is not imported here."""
GROUPS = {group: noun for group, (noun, _) in _GROUPS.items()}
_GROUP_OF_BASE = {base: group for group, (_, base) in _GROUPS.items()}
_OURS = "inat-ft"

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Plugin:
    """A registered name: its package and the class, command or feature that it points to, which is not imported yet."""

    group: str
    name: str
    package: str
    target: str
    entry: EntryPoint

    @property
    def is_builtin(self) -> bool:
        return self.package == _OURS

    def __str__(self) -> str:
        return f"{GROUPS[self.group]} '{self.name}' of package '{self.package}'"

    def load(self) -> Any:
        """Import the class, command or feature. Raises PluginError if that fails or the contract is broken."""
        try:
            loaded = self.entry.load()
        except (Exception, SystemExit) as error:
            problem = f"{self} cannot be imported from {self.target}: {type(error).__name__}: {error}"
            raise PluginError(problem, f"repair or remove it: pip uninstall {self.package}") from error
        if self.group in (COMMANDS, FEATURES) and callable(loaded):
            return loaded
        if not isinstance(loaded, type):
            raise PluginError(f"{self} is not a class: {self.target}")
        if _group_of(loaded) != self.group:
            base = _GROUPS[self.group][1].partition(":")[2]
            raise PluginError(f"{self} breaks the contract: {self.target} is not derived from {base}")
        if missing := getattr(loaded, "__abstractmethods__", None):
            methods = " and no ".join(f"{name}()" for name in sorted(missing))
            raise PluginError(f"{self} breaks the contract: {self.target} has no {methods}")
        return loaded


@cache
def all_plugins() -> dict[str, dict[str, list[Plugin]]]:
    """Return the plugins of all groups. Tests that install one call `all_plugins.cache_clear()`."""
    found: dict[str, dict[str, set[Plugin]]] = {group: {} for group in GROUPS}
    packages: dict[int, str] = {}  # reading the name of a package takes a millisecond
    entries = entry_points()
    for group, names in found.items():
        for entry in entries.select(group=group):
            if id(entry.dist) not in packages:
                packages[id(entry.dist)] = entry.dist.name if entry.dist else "unknown package"
            plugin = Plugin(group, entry.name, packages[id(entry.dist)], entry.value, entry)
            names.setdefault(entry.name, set()).add(plugin)
    return {
        group: {name: sorted(names[name], key=lambda plugin: (plugin.package, plugin.target)) for name in sorted(names)}
        for group, names in found.items()
    }


def plugins(group: str) -> dict[str, list[Plugin]]:
    """Return the plugins of a group by name, sorted. `get` reports a name with several plugins as a conflict."""
    return all_plugins()[group]


def get(group: str, name: str) -> Plugin:
    """Return the plugin of that name, a built-in one first. Raises ConfigError, or PluginError for a conflict."""
    claims = plugins(group).get(name, [])
    ours = [plugin for plugin in claims if plugin.is_builtin]
    if len(claims) > 1 and len(ours) != 1:
        packages = ", ".join(f"'{plugin.package}'" for plugin in claims)
        problem = f"the packages {packages} all register a {GROUPS[group]} '{name}'"
        raise PluginError(problem, "uninstall all of them but one")
    if not claims:
        known = plugins(group)
        problem = f"unknown {GROUPS[group]} '{name}'{did_you_mean(name, known)}"
        raise ConfigError(problem, f"installed: {', '.join(known)}")
    return ours[0] if ours else claims[0]


def split_backbone(name: str) -> tuple[str, str | None]:
    """Split a backbone's name into entry point and variant: `timm:resnet10t` has both."""
    family, colon, variant = name.partition(":")
    if colon:
        return family, variant
    claims = plugins(BACKBONES).get(name, [])
    others_alone = claims and not any(plugin.is_builtin for plugin in claims)
    if not claims or (others_alone and get(BACKBONES, "torchvision").load().stands_for(name)):
        return "torchvision", name
    return name, None


def plugin_label(group: str, loaded: type[Any]) -> str:
    """Return what messages call a class: `strategy 'x' of package 'y'`, with all its names, or else its module."""
    names = [f"'{plugin.name}' of package '{plugin.package}'" for plugin in _registered_as(group, loaded)]
    return f"{GROUPS.get(group, 'plugin')} {' or '.join(names) or f'{loaded.__qualname__} of {loaded.__module__}'}"


def call_plugin(method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a bound method of a plugin, or its class, and return the result, as in `call_plugin(strategy.adapt, net)`.

    Raises PluginError, which names the plugin and the method, for every exception except the errors of inat-ft itself.
    """
    loaded = method if isinstance(method, type) else type(getattr(method, "__self__", None))
    name = "__init__" if loaded is method else getattr(method, "__name__", method)
    with plugin_errors(_group_of(loaded), loaded, f"{name}()"):
        return method(*args, **kwargs)


@contextmanager
def plugin_errors(group: str, loaded: type[Any], method: str) -> Iterator[None]:
    """Turn every exception inside the block into a PluginError, except the errors of inat-ft itself."""
    try:
        yield
    except (InatFtError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        packages = sorted({plugin.package for plugin in _registered_as(group, loaded)} - {_OURS})
        hint = f"report it to the author of the plugin, or remove it: pip uninstall {' '.join(packages)}"
        problem = f"{plugin_label(group, loaded)} failed in {method}: {type(error).__name__}: {error}"
        raise PluginError(problem, hint if packages else "") from error


def _registered_as(group: str, loaded: type[Any]) -> list[Plugin]:
    target = _path(loaded)
    return [plugin for claims in plugins(group).values() for plugin in claims if plugin.target == target]


def _group_of(loaded: type[Any]) -> str:
    return next((_GROUP_OF_BASE[_path(base)] for base in loaded.__mro__ if _path(base) in _GROUP_OF_BASE), "")


def _path(loaded: type[Any]) -> str:
    return f"{loaded.__module__}:{loaded.__qualname__}"
