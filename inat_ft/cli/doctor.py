"""`inat-ft doctor`: whether this machine has what a run needs."""

from dataclasses import asdict
from pathlib import Path

import typer

from inat_ft.cli import options, render


def doctor(
    runs_dir: options.RunsDir = Path("runs"), cache_dir: options.CacheDir = None, json: options.Json = False
) -> None:
    """Look at versions, device, folders, weights and plugins, and say what to do; exit code 1 when runs would fail.

    [dim]inat-ft doctor[/dim]
    """
    from inat_ft.checkup import look
    from inat_ft.data.places import cache_folder

    found = list(look(runs_dir, cache_folder(cache_dir)))
    if json:
        render.as_json([asdict(finding) for finding in found])
    else:
        render.table("", ("", "state", "found"), [(each.what, each.state, each.found) for each in found])
        for finding in found:
            if finding.hint:
                render.result(f"{finding.what}: {finding.hint}")
    if any(finding.state == "problem" for finding in found):
        raise typer.Exit(1)
