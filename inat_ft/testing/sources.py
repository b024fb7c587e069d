"""The conformance check of a data source plugin."""

from __future__ import annotations

import tempfile
from pathlib import Path

from inat_ft.data.sources.base import ImageList, ReadOptions, Source
from inat_ft.registry import SOURCES, call_plugin, plugin_label


def check_source(source: Source, location: Path) -> ImageList:
    """Check that a data source fulfils its contract, and return the images of a location that it can read.

    Raises AssertionError or PluginError if it does not: it recognizes the location, and neither an empty folder nor a file
    without content; it lists images that exist, each once, in the same way each time; an image cannot be both listed and left
    out.
    """
    name = plugin_label(SOURCES, type(source))
    assert call_plugin(source.recognizes, location), f"{name} does not recognize {location}"
    with tempfile.TemporaryDirectory() as temporary:
        other = Path(temporary) / "unknown.xyz"
        other.touch()
        assert not call_plugin(source.recognizes, other), f"{name} recognizes an empty file with the suffix .xyz"
    images = call_plugin(source.read, location, ReadOptions())
    again = call_plugin(source.read, location, ReadOptions())
    assert isinstance(images, ImageList), f"read() must return an ImageList, not {images!r}"
    assert images.layout, "read() must set a layout, which the manifest records"
    assert images.rows, f"read() lists no images of {location}"
    assert images.root.is_dir(), f"the root of the images, {images.root}, is not a folder"
    assert not images.listing or (images.root / images.listing).samefile(location), (
        f"the listing must be the file name of {location}, not {images.listing!r}"
    )
    assert (images.rows, images.left_out) == (again.rows, again.left_out), "read() lists different images each time"
    paths = images.paths
    assert len(set(paths)) == len(paths), "read() lists an image twice"
    assert not set(paths) & {left.path for left in images.left_out}, "an image is both listed and left out"
    missing = [path for path in paths if not (images.root / path).is_file()]
    assert not missing, f"read() lists files that do not exist, such as {missing[0]}"
    assert {row.label for row in images.rows} <= images.classes, "classes must contain every label"
    return images
