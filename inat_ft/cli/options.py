"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", envvar="INAT_FT_RUNS_DIR", help="Folder for runs.")]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="INAT_FT_CACHE_DIR",
        help="Folder for caches.",
        show_default="the platform's cache folder",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Random seed.")]
