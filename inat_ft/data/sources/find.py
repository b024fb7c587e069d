"""Where labelled images come from: folders or a CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inat_ft.data.sources.base import Exclusions, Files
from inat_ft.data.sources.csv_file import read_csv_file
from inat_ft.data.sources.image_folder import read_image_folder
from inat_ft.errors import UsageError


def find_images(
    data: Path, classes_from: str | None = None, skip: Path | None = None, exclude: Sequence[str] = ()
) -> Files:
    """List the files of a folder or CSV, sorted by path. Raises UsageError or DataError naming what is wrong.

    classes_from: one of the ranks kingdom to species, for folders named as in iNaturalist 2021; skip: the manifest, which may
    lie in `data` and is not part of it; exclude: glob patterns of files and folders to leave out.
    """
    exclusions = Exclusions(exclude)
    if not data.exists():
        raise UsageError(f"no such folder: {data}", "name a folder of class folders, or a CSV (path,label)")
    if data.is_file():
        if data.suffix.lower() != ".csv":
            raise UsageError(f"{data} is neither a folder of images nor a .csv file (path,label[,subset])")
        if classes_from:
            raise UsageError("--classes-from goes with folders; a CSV names its labels itself")
        files = read_csv_file(data, exclusions)
    else:
        files = read_image_folder(data, classes_from, skip, exclusions)
    files.leave_out_excluded()
    order = sorted(range(len(files.paths)), key=files.paths.__getitem__)
    files.paths = [files.paths[place] for place in order]
    files.labels = [files.labels[place] for place in order]
    files.subsets = [files.subsets[place] for place in order]
    files.left_out.sort()
    return files
