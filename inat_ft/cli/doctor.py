"""`inat-ft doctor`: check what a run needs."""

from pathlib import Path

import typer

from inat_ft.cli import options, render


def doctor(
    runs_dir: options.RunsDir = Path("runs"), cache_dir: options.CacheDir = None, json: options.Json = False
) -> None:
    """Check versions, device, folders, weights and plugins, and show what to do. The exit code is 1 if runs would fail.

    [dim]inat-ft doctor[/dim]
    """
    from inat_ft.diagnostics import run_checks
    from inat_ft.paths import cache_folder

    checks = list(run_checks(runs_dir, cache_folder(cache_dir)))
    if json:
        render.echo_json(
            [{"what": check.name, "state": check.status, "found": check.detail, "hint": check.hint} for check in checks]
        )
    else:
        render.table("", ("", "state", "found"), [(each.name, each.status, each.detail) for each in checks])
        for check in checks:
            if check.hint:
                render.echo(f"{check.name}: {check.hint}")
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)
