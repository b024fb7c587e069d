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
    from inat_ft.diagnostics import run_checks
    from inat_ft.paths import cache_folder

    detail = list(run_checks(runs_dir, cache_folder(cache_dir)))
    if json:
        render.echo_json([asdict(finding) for finding in detail])
    else:
        render.table("", ("", "state", "found"), [(each.name, each.status, each.detail) for each in detail])
        for finding in detail:
            if finding.hint:
                render.echo(f"{finding.name}: {finding.hint}")
    if any(finding.status == "problem" for finding in detail):
        raise typer.Exit(1)
