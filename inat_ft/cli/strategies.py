"""`inat-ft strategies`: what is installed, and each one's options."""

from typing import Annotated

import typer

from inat_ft.cli import options, render


def strategies(
    name: Annotated[str | None, typer.Argument(help="Show the options of this strategy.", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """List the installed strategies, or the options of one.

    [dim]inat-ft strategies partial[/dim]
    """
    raise NotImplementedError
