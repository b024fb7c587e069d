"""Choose the source that reads a location, and check what it returns."""

from __future__ import annotations

import os
from pathlib import Path

from inat_ft.data.sources.base import NOT_UTF8, ImageList, ReadOptions, Reason, Source, is_text, real_path
from inat_ft.errors import DataError, PluginError, UsageError
from inat_ft.registry import SOURCES, Plugin, call_plugin, get, plugin_errors, plugin_label, plugins


def find_images(location: Path, source: str | None = None, options: ReadOptions | None = None) -> ImageList:
    """Return the images of a location, sorted by path.

    source: name of the source; by default the first that recognizes the location, the built-in ones before plugins. Raises
    UsageError, DataError or PluginError.
    """
    if not location.exists():
        raise UsageError(f"no such file or folder: {location}", "pass a folder of class folders or a CSV (path,label)")
    options = options or ReadOptions()
    plugin, chosen = _create(get(SOURCES, source)) if source else _recognizing(location)
    if options.classes_from and not chosen.supports_classes_from:
        raise UsageError(f"--classes-from applies to folders, not to {location}", "remove --classes-from")
    images = call_plugin(chosen.read, location, options)
    if not isinstance(images, ImageList):
        raise PluginError(f"{plugin_label(SOURCES, type(chosen))}: read() must return an ImageList, not {images!r}")
    images.source = "" if plugin.is_builtin and chosen.recognizes(location) else plugin.name
    if images.listing:
        _leave_out_unusable_paths(images, options)
    if not images.rows:
        raise DataError(f"{location} lists no images", "add at least one image with a label for each class")
    for path, pattern in options.exclude.found.items():
        images.leave_out(path, f"excluded: it matches {pattern}", Reason.EXCLUDED)
    images.rows.sort(key=lambda row: row.path)
    images.left_out.sort()
    for before, row in zip(images.rows, images.rows[1:], strict=False):
        if before.path == row.path:
            raise DataError(f"{location} lists {row.path} twice", "remove one of the two entries")
    return images


def _create(plugin: Plugin) -> tuple[Plugin, Source]:
    loaded = plugin.load()
    with plugin_errors(SOURCES, loaded, "__init__()"):
        return plugin, loaded()


def _recognizing(location: Path) -> tuple[Plugin, Source]:
    """Return the first source that recognizes a location. A plugin that fails is reported only if no other one does."""
    broken: list[str] = []
    found = [plugin for claims in plugins(SOURCES).values() for plugin in claims]
    for plugin in sorted(found, key=lambda plugin: not plugin.is_builtin):
        try:
            source = _create(plugin)[1]
            if call_plugin(source.recognizes, location):
                return plugin, source
        except PluginError as error:
            broken.append(error.message)
    names = ", ".join(plugins(SOURCES))
    hint = f"pass a folder of class folders or a CSV (path,label); installed sources: {names}"
    raise UsageError(f"no data source recognizes {location}", "\n".join([hint, *broken]))


def _leave_out_unusable_paths(images: ImageList, options: ReadOptions) -> None:
    """Leave out excluded paths, names that are not UTF-8, and links out of the root."""
    root, inside = images.root.resolve(), dict[str, bool]()

    def leads_inside(path: str) -> bool:
        return real_path(path).is_relative_to(root)

    rows = [row for row in images.rows if not options.exclude.contains(row.path)]
    images.rows, images.classes = [], {row.label for row in rows}
    for row in rows:
        folder, whole = row.path.rpartition("/")[0], os.path.join(root, row.path)
        if not is_text(row.path):
            images.leave_out(row.path, *NOT_UTF8)
            continue
        if folder not in inside:  # each folder is checked once
            inside[folder] = leads_inside(os.path.join(root, folder))
        if inside[folder] and not (os.path.islink(whole) and not leads_inside(whole)):
            images.rows.append(row)
        else:
            images.leave_out(row.path, "a link out of the folder")
