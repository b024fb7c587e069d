"""Unpacking an archive that nobody vouches for."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from inat_ft.errors import DataError

Tick = Callable[[int, int], None]

MAX_BYTES = 64 * 2**30
"""Most that an archive may unpack to."""
MAX_FILES = 4_000_000

_BLOCK = 2**20


def unpack(archive: Path, target: Path, inside: str, tick: Tick, max_bytes: int = MAX_BYTES) -> None:
    """Unpack a zip file so that its folder `inside` becomes `target`, all of it or nothing.

    Raises DataError for a damaged archive, for names that lead out of it, links, devices, more than max_bytes (counted
    as they are written, since headers lie) or when `inside` is not in it.
    """
    if target.exists():
        raise DataError(f"{target} exists already", "remove it to unpack again")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise DataError(f"cannot write to {target.parent}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(archive) as opened:
            _extract(opened, work, tick, max_bytes)
        if not (work / inside).is_dir():
            raise DataError(f"{archive} holds no folder {inside}", "it is not the archive that was expected")
        (work / inside).replace(target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive} is damaged: {error}", "remove it and fetch it again") from error
    except OSError as error:
        raise DataError(
            f"cannot unpack {archive} to {target.parent}: {error.strerror or error}", "free some space"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _extract(opened: zipfile.ZipFile, work: Path, tick: Tick, max_bytes: int) -> None:
    members = opened.infolist()
    if len(members) > MAX_FILES:
        raise DataError(f"the archive holds {len(members):,} files, more than {MAX_FILES:,}")
    for member in members:
        _require_harmless(member)
    written = 0
    for number, member in enumerate(members, 1):
        place = work / PurePosixPath(member.filename)
        if member.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(member) as source, place.open("xb") as out:
                while block := source.read(_BLOCK):
                    written += len(block)
                    if written > max_bytes:
                        raise DataError(f"the archive unpacks to more than {max_bytes:,} bytes")
                    out.write(block)
        tick(number, len(members))


def _require_harmless(member: zipfile.ZipInfo) -> None:
    """Only plain files and folders below the archive's own root."""
    name = PurePosixPath(member.filename)
    mode = member.external_attr >> 16
    bad_name = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    if bad_name or "\0" in member.filename or not name.parts:
        raise DataError(f"the archive holds a name that leads out of its folder: {member.filename!r}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"the archive holds a link or device, not a file: {member.filename!r}")
