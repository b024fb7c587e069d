"""The split of a tuning: a manifest, or a folder that is split once."""

from __future__ import annotations

import shlex
import time
from functools import partial
from pathlib import Path

from inat_ft.data.manifest import read_manifest
from inat_ft.data.split import SplitOptions, split_images
from inat_ft.errors import UsageError
from inat_ft_tune.planner import format_seconds
from inat_ft_tune.session import Session


def data_name(data: Path) -> str:
    """Return the name of a folder or a manifest, for the files that belong to it."""
    return data.stem if data.suffix == ".csv" else data.resolve().name


def make_split(session: Session) -> None:
    """Split the images, unless the data is a manifest or was split before."""
    state, data = session.state, Path(session.state.data)
    if state.split and Path(state.split).exists():
        return
    out = Path("splits") / f"{data_name(data)}.csv"
    if data.is_file() and _is_manifest(data):
        state.split = data.as_posix()
    elif not data.exists():
        raise UsageError(f"no such folder or manifest: {data}", "name a folder with one folder of images per class")
    elif data.resolve() == out.resolve():
        raise UsageError(f"{data} is not a manifest of inat-ft", "create one: inat-ft split DATA")
    elif out.is_file() and _is_manifest(out) and read_manifest(out).root == data.resolve():
        session.log(f"split: {out} exists and is used")
        state.split = out.as_posix()
    else:
        session.log(f"split: checking the images of {data}; the manifest is {out}")
        started = time.monotonic()
        split = partial(split_images, log=session.log, warn=session.warn, progress=session.progress)
        try:
            found = split(data, out, SplitOptions())
        except UsageError as error:
            if not out.exists():
                raise
            hint = f"split into another file, and tune that one: inat-ft split {shlex.quote(str(data))} --out FILE"
            raise UsageError(error.message, hint) from None
        state.split = found.path.as_posix()
        session.log(f"split: done in {format_seconds(time.monotonic() - started)}")
    session.save()


def _is_manifest(file: Path) -> bool:
    with file.open("rb") as raw:
        return raw.read(18) == b"# inat-ft manifest"
