"""`inat-ft doctor`: check what a run needs."""

from pathlib import Path

import typer

from inat_ft.cli import options, render
from inat_ft.tables import Table


def doctor(
    runs_dir: options.RunsDir = Path("runs"), cache_dir: options.CacheDir = None, json: options.Json = False
) -> None:
    """Check the installation, the device and the plugins.

    For each problem, show what to do. The exit code is 1 if runs would fail.

    [dim]inat-ft doctor[/dim]
    """
    from inat_ft.paths import cache_folder
    from inat_ft_doctor.checks import run_checks

    checks = list(run_checks(runs_dir, cache_folder(cache_dir)))
    if json:
        render.echo_json(Table(("what", "state", "found", "hint"), checks))
    else:
        render.table(Table(("", "state", "found"), [check[:3] for check in checks]))
        for check in checks:
            if check.hint:
                render.echo(f"{check.name}: {check.hint}")
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(1)
