"""Plugins by name, through entry points: names are read without importing anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from inat_ft.errors import ConfigError, InatFtError, PluginError, did_you_mean

STRATEGIES = "inat_ft.strategies"
BACKBONES = "inat_ft.backbones"
TRACKERS = "inat_ft.trackers"
METRICS = "inat_ft.metrics"
OPTIMIZERS = "inat_ft.optimizers"
EXPORTERS = "inat_ft.exporters"
SOURCES = "inat_ft.sources"
SWEEP_BACKENDS = "inat_ft.sweep_backends"

_KIND = {
    STRATEGIES: "strategy",
    BACKBONES: "backbone",
    TRACKERS: "tracker",
    METRICS: "metric",
    OPTIMIZERS: "optimizer",
    EXPORTERS: "exporter",
    SOURCES: "source",
    SWEEP_BACKENDS: "sweep backend",
}
_OURS = "inat-ft"


@dataclass(frozen=True)
class Plugin:
    """One registered name: where it comes from and what it points to, not yet imported."""

    group: str
    name: str
    package: str
    target: str
    entry: EntryPoint

    @property
    def is_builtin(self) -> bool:
        """Whether it comes with inat-ft."""
        return self.package == _OURS

    def __str__(self) -> str:
        return f"{_KIND[self.group]} '{self.name}' of package '{self.package}'"

    def load(self) -> type[Any]:
        """Import the class. Raises PluginError naming plugin, package and cause, whatever the import raised."""
        try:
            loaded = self.entry.load()
        except (Exception, SystemExit) as error:  # a plugin's import may raise anything at all
            raise PluginError(
                f"{self} cannot be imported from {self.target}: {type(error).__name__}: {error}",
                f"repair or remove it: pip uninstall {self.package}",
            ) from error
        if not isinstance(loaded, type):
            raise PluginError(f"{self} is no class: {self.target}")
        return loaded


@cache
def plugins(group: str) -> dict[str, list[Plugin]]:
    """All plugins of a group by name, sorted; a name with several plugins is a clash that `find` reports."""
    found: dict[str, set[Plugin]] = {}
    for entry in entry_points(group=group):
        package = entry.dist.name if entry.dist else "unknown package"
        found.setdefault(entry.name, set()).add(Plugin(group, entry.name, package, entry.value, entry))
    return {name: sorted(found[name], key=lambda plugin: (plugin.package, plugin.target)) for name in sorted(found)}


def plugin_label(group: str, loaded: type[Any]) -> str:
    """What to call a plugin's class: `strategy 'x' of package 'y'`, by all its names, or by its module when it has none."""
    names = [f"'{plugin.name}' of package '{plugin.package}'" for plugin in _registered_as(group, loaded)]
    return f"{_KIND[group]} {' or '.join(names) or f'{loaded.__qualname__} of {loaded.__module__}'}"


def _registered_as(group: str, loaded: type[Any]) -> list[Plugin]:
    target = f"{loaded.__module__}:{loaded.__qualname__}"
    return [plugin for claims in plugins(group).values() for plugin in claims if plugin.target == target]


@contextmanager
def plugin_errors(group: str, loaded: type[Any], method: str) -> Iterator[None]:
    """Whatever a plugin's method raises becomes a PluginError naming it; this program's own errors pass."""
    try:
        yield
    except (InatFtError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        packages = sorted({plugin.package for plugin in _registered_as(group, loaded)} - {_OURS})
        raise PluginError(
            f"{plugin_label(group, loaded)} failed in {method}: {type(error).__name__}: {error}",
            f"tell its author (where: run again with --debug), or remove it: pip uninstall {' '.join(packages)}"
            if packages
            else "where: run again with --debug",
        ) from error


def get(group: str, name: str) -> Plugin:
    """The plugin of that name: inat-ft's own, if there is one.

    Raises ConfigError when unknown, PluginError when two other packages claim the name.
    """
    claims = plugins(group).get(name, [])
    ours = [plugin for plugin in claims if plugin.is_builtin]
    if len(claims) > 1 and len(ours) != 1:
        packages = ", ".join(f"'{plugin.package}'" for plugin in claims)
        raise PluginError(
            f"the packages {packages} all bring a {_KIND[group]} '{name}'",
            "keep one of them: pip uninstall the others",
        )
    if not claims:
        known = tuple(plugins(group))
        raise ConfigError(
            f"unknown {_KIND[group]} '{name}'{did_you_mean(name, known)}", f"installed: {', '.join(known)}"
        )
    return ours[0] if ours else claims[0]
