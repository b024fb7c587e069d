"""`inat-ft cache`: list or clear the caches."""

from typing import Annotated, Any

import typer

from inat_ft.cli import options, render
from inat_ft.tables import Table


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the listed caches.")] = False,
    kind: Annotated[
        str | None, typer.Option(help="List only packed (decoded images) or prefix (output of frozen layers).")
    ] = None,
    cache_dir: options.CacheDir = None,
    json: options.Json = False,
) -> None:
    """List or clear the caches.

    A cleared cache is written again when it is needed.

    [dim]inat-ft cache --clear --kind prefix[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft.paths import cache_folder
    from inat_ft.text import format_bytes, pluralize
    from inat_ft_doctor.stores import KINDS, clear_store, list_stores

    if kind not in (None, *KINDS):
        raise UsageError(f"unknown kind '{kind}'", f"known: {', '.join(KINDS)}")
    folder = cache_folder(cache_dir)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "choose the cache folder with --cache-dir")
    stores = [store for store in list_stores(folder) if kind in (None, store.kind)]
    if clear:
        for store in stores:
            clear_store(store)
    total = sum(store.size for store in stores)
    if json:
        rows = [(store.kind, store.rows, store.size, store.folder.as_posix(), store.key) for store in stores]
        listed = Table(("kind", "rows", "bytes", "folder", "key"), rows)
        render.echo_json({"folder": folder.as_posix(), "bytes": total, "cleared": clear, "caches": listed})
        return
    if stores:
        columns = {"kind": "", "rows": ",", "size": ">", "contents": "", "folder": ""}
        render.table(
            Table(columns, ((s.kind, s.rows, format_bytes(s.size), _about(s.key), s.folder.name) for s in stores))
        )
    render.echo(f"{folder}: {format_bytes(total)} in {pluralize(len(stores), 'cache')}{', cleared' if clear else ''}")


def _about(key: dict[str, Any]) -> str:
    if not key:
        return "damaged description"
    size, stages = f"{key.get('size')} x {key.get('size')} pixels", key.get("stages")
    return f"{stages[0]}..{stages[-1]}, {key.get('form')}, {size}" if stages else size
