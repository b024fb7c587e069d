"""Create plugins from the options in a configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from inat_ft.errors import ConfigError, did_you_mean
from inat_ft.registry import BACKBONES, TRACKERS, get, plugins
from inat_ft.validation import format_validation_error


def create_plugin(
    group: str, name: str, options: Mapping[str, Any], where: str, also: Iterable[str] = (), shown: str = ""
) -> Any:
    """Return the plugin of a group with its options.

    where: dotted key of the section; also: its keys that do not belong to the plugin, for suggestions; shown: its name in
    messages. Raises ConfigError for an unknown plugin or option, PluginError for a broken plugin.
    """
    plugin = get(group, name).load()
    try:
        return plugin(**options)
    except ValidationError as error:
        raise format_validation_error(error, plugin, where, tuple(also), f"'{shown or name}'") from None


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


def backbone_class(name: str) -> type[Any]:
    """Return the class of a backbone. Raises ConfigError for an unknown name, PluginError for a broken plugin."""
    return get(BACKBONES, split_backbone(name)[0]).load()


def complete_trackers(section: Mapping[str, Any], own: Iterable[str]) -> dict[str, Any]:
    """Validate and complete the options of each tracker. `true` or `{}` selects its defaults, `null` removes it.

    own: the keys of the section that are not names of trackers.
    """
    completed = {name: value for name, value in section.items() if value is not None}
    if completed.get("wandb") in (True, {}):
        completed["wandb"] = "online"
    for name in completed.keys() - set(own):
        options = {} if completed[name] is True else completed[name]
        if not isinstance(options, Mapping):
            known = (*own, *plugins(TRACKERS))
            near = did_you_mean(name, known) or f": it has {', '.join(known)}"
            raise ConfigError(f"unknown key '{name}' in track{near}", "to list all keys: inat-ft train --show-config")
        completed[name] = create_plugin(TRACKERS, name, options, f"track.{name}").model_dump(mode="json")
    return completed
