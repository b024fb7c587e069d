"""`inat-ft cache`: list or clear the caches."""

from typing import Annotated

import typer

from inat_ft.cli import options, render


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the listed caches.")] = False,
    kind: Annotated[
        str | None,
        typer.Option(help="List only packed (decoded images) or prefix (output of frozen layers).", show_default=False),
    ] = None,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
) -> None:
    """List the caches with their sizes, or delete them. They are written again when they are needed.

    [dim]inat-ft cache --clear --kind prefix[/dim]
    """
    from inat_ft.cache.array_store import clear_store, list_stores
    from inat_ft.errors import UsageError
    from inat_ft.paths import cache_folder
    from inat_ft.text import format_bytes, pluralize

    if kind not in (None, "packed", "prefix"):
        raise UsageError(f"unknown kind '{kind}'", "known: packed, prefix")
    folder = cache_folder(cache_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "choose the cache folder with --cache-dir")
    stores = [store for store in list_stores(folder) if kind in (None, store.kind)]
    if clear:
        for store in stores:
            clear_store(store)
    total = sum(store.size for store in stores)
    if json:
        listed = [
            {"kind": s.kind, "rows": s.rows, "bytes": s.size, "folder": s.folder.as_posix(), "key": s.key}
            for s in stores
        ]
        render.echo_json({"folder": folder.as_posix(), "bytes": total, "cleared": clear, "caches": listed})
        return
    rows = [(s.kind, f"{s.rows:,}", format_bytes(s.size), _about(s.key), s.folder.name) for s in stores]
    if rows:
        render.table("", ("kind", "rows", "size", "contents", "folder"), rows, right=("rows", "size"))
    render.echo(f"{folder}: {format_bytes(total)} in {pluralize(len(stores), 'cache')}{', cleared' if clear else ''}")


def _about(key: dict[str, object]) -> str:
    if not key:
        return "damaged description"
    size = f"{key.get('size')} x {key.get('size')} pixels"
    stages = key.get("stages")
    return f"{stages[0]}..{stages[-1]}, {key.get('form')}, {size}" if isinstance(stages, list) and stages else size
