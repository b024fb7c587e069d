"""`inat-ft strategies`: what is installed, and each one's options."""

from typing import Annotated, Any

import typer

from inat_ft.cli import options, render


def strategies(
    name: Annotated[str | None, typer.Argument(help="Show the options of this strategy.", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """List the installed strategies, or the options of one.

    [dim]inat-ft strategies partial[/dim]
    """
    from inat_ft.registry import STRATEGIES, get, plugins

    if name is not None:
        shown = _one(get(STRATEGIES, name))
        if json:
            render.echo_json(shown)
            return
        render.echo(f"{name}: {shown['summary']}")
        if not shown["options"]:
            render.echo("it has no options")
            return
        cells = [(f"strategy.{each['name']}", each["type"], each["default"], each["help"]) for each in shown["options"]]
        render.table("", ("key", "type", "default", "meaning"), cells)
        return
    found = [_listed(plugin) for claims in plugins(STRATEGIES).values() for plugin in claims]
    if json:
        render.echo_json(found)
        return
    rows = [(each["name"], each["package"], each["summary"]) for each in found if not each["problem"]]
    render.table("", ("strategy", "package", "what it does"), rows)
    for each in found:
        if each["problem"]:
            render.echo(f"broken: {each['problem']}")


def _listed(plugin: Any) -> dict[str, Any]:
    from inat_ft.errors import PluginError
    from inat_ft.registry import STRATEGIES, get

    try:
        chosen = get(STRATEGIES, plugin.name)
        if chosen != plugin:
            problem = f"{plugin}: the name is taken by package '{chosen.package}'"
            return {"name": plugin.name, "package": plugin.package, "summary": "", "problem": problem}
        return {**_one(plugin), "problem": None}
    except PluginError as error:
        return {"name": plugin.name, "package": plugin.package, "summary": "", "problem": error.message}


def _one(plugin: Any) -> dict[str, Any]:
    loaded = plugin.load()
    return {
        "name": plugin.name,
        "package": plugin.package,
        "summary": (loaded.__doc__ or "").strip().splitlines()[0] if loaded.__doc__ else "",
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
