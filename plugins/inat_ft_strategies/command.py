"""`inat-ft strategies`: list the installed strategies, or the options of one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from inat_ft.cli import options, render
from inat_ft.tables import Table

if TYPE_CHECKING:
    from inat_ft.registry import Plugin


def strategies(
    name: Annotated[str | None, typer.Argument(help="Show the options of this strategy.")] = None,
    json: options.Json = False,
) -> None:
    """List the fine-tuning strategies, or the options of one.

    [dim]inat-ft strategies partial[/dim]
    """
    from inat_ft.registry import STRATEGIES, get, plugins

    if name is None:
        found = [_list(plugin) for claims in plugins(STRATEGIES).values() for plugin in claims]
        render.emit(json, found, lambda: _show(found))
    else:
        described = _describe(get(STRATEGIES, name))
        render.emit(json, described, lambda: _show_options(described))


def _show(found: list[dict[str, Any]]) -> None:
    rows = [(each["name"], each["package"], each["summary"]) for each in found if not each["problem"]]
    render.table(Table(("strategy", "package", "what it does"), rows))
    for each in found:
        if each["problem"]:
            render.echo(f"broken: {each['problem']}")


def _show_options(strategy: dict[str, Any]) -> None:
    render.echo(f"{strategy['name']}: {strategy['summary']}")
    rows = [
        (f"strategy.{each['name']}", each["type"], str(each["default"]), each["help"]) for each in strategy["options"]
    ]
    if rows:
        render.table(Table(("key", "type", "default", "meaning"), rows))
    else:
        render.echo("it has no options")


def _list(plugin: "Plugin") -> dict[str, Any]:
    from inat_ft.errors import PluginError
    from inat_ft.registry import STRATEGIES, get

    try:
        chosen = get(STRATEGIES, plugin.name)
        if chosen == plugin:
            return {**_describe(plugin), "problem": None}
        problem = f"{plugin}: the name is taken by package '{chosen.package}'"
    except PluginError as error:
        problem = error.message
    return {"name": plugin.name, "package": plugin.package, "summary": "", "problem": problem}


def _describe(plugin: "Plugin") -> dict[str, Any]:
    loaded = plugin.load()
    return {
        "name": plugin.name,
        "package": plugin.package,
        "summary": (loaded.__doc__ or "").strip().partition("\n")[0],
        "options": [
            {
                "name": name,
                "type": getattr(field.annotation, "__name__", str(field.annotation)),
                "default": None if field.is_required() else field.get_default(call_default_factory=True),
                "help": field.description or "",
            }
            for name, field in loaded.model_fields.items()
        ],
    }
