"""Unpacking an archive that nobody vouches for."""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from inat_ft.download.atomic_dir import atomic_directory
from inat_ft.errors import DataError, is_disk_full
from inat_ft.progress import ProgressFn

MAX_BYTES = 64 * 2**30
"""Most that an archive may unpack to."""
MAX_FILES = 4_000_000
MAX_RATIO = 100
"""Most bytes unpacked for one byte of archive, beyond the first 16 MiB; photographs come to about 1."""
MAX_DEPTH = 32

_BLOCK = 2**20
_RATIO_APPLIES_FROM = 2**24
_NO_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error)


class ArchiveError(DataError):
    """The archive itself is at fault, not the place that it is unpacked to."""


def unpack(
    archive: Path,
    target: Path,
    inside: str,
    progress: ProgressFn,
    max_bytes: int = MAX_BYTES,
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Unpack a zip file so that its folder `inside` becomes `target`, all of it or nothing.

    Call it under `locked(target)`. progress gets (done, total) in files; check may raise BadArchive at what has been
    unpacked, before it gets its name. Raises BadArchive for damage, for names that lead out
    of the archive, links, devices, encryption, more than max_bytes, MAX_FILES or MAX_RATIO (all counted as they are
    written, since headers lie), or when `inside` is not in it; DataError when the disk will not take it.
    """
    try:
        with atomic_directory(target) as work:
            _extract(archive, work, inside, progress, min(max_bytes, _by_ratio(archive)))
            check(work)
    except OSError as error:
        hint = "free some space and try again" if is_disk_full(error) else "see that the folder can be written"
        raise DataError(f"cannot unpack {archive} to {target.parent}: {error.strerror or error}", hint) from error


def _by_ratio(archive: Path) -> int:
    return max(_RATIO_APPLIES_FROM, MAX_RATIO * archive.stat().st_size)


def _extract(archive: Path, work: Path, inside: str, progress: ProgressFn, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [(member, _validate_member(member)) for member in opened.infolist()]
            wanted = [(member, place) for member, place in members if place.parts[0] == inside]
            if len(members) > MAX_FILES:
                raise ArchiveError(f"the archive holds {len(members):,} files, more than {MAX_FILES:,}")
            _require_room(
                sum(member.file_size for member, _ in wanted), max_bytes
            )  # soon, when the headers tell the truth
            if not any(len(place.parts) > 1 for _, place in wanted):
                raise ArchiveError(f"{archive} holds no folder {inside}", "it is not the archive that was expected")
            written = 0
            for number, (member, place) in enumerate(wanted, 1):
                written = _write(opened, member, work.joinpath(*place.parts[1:]), written, max_bytes)
                progress(number, len(wanted))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f"{archive} holds a name twice: {Path(error.filename).relative_to(work)}") from error
    except OSError as error:
        if error.errno not in _NO_NAME:
            raise
        name = Path(error.filename or "").name
        raise ArchiveError(
            f"{archive} holds a name that no file can have, {name[:40]!r}...: {error.strerror}"
        ) from error
    except _DAMAGE as error:
        raise ArchiveError(f"{archive} is damaged: {error}", "remove it and fetch it again") from error


def _validate_member(member: zipfile.ZipInfo) -> PurePosixPath:
    """Where a member goes, if it is a plain file or folder below the archive's own root."""
    name, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
    if "\0" in member.orig_filename:
        raise ArchiveError(f"the archive holds a name that no file can have: {member.orig_filename!r}")
    bad_name = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    if bad_name or not name.parts:
        raise ArchiveError(f"the archive holds a name that leads out of its folder: {member.filename!r}")
    if len(name.parts) > MAX_DEPTH:
        raise ArchiveError(f"the archive holds folders more than {MAX_DEPTH} deep: {member.filename[:80]!r}...")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"the archive holds a link or device, not a file: {member.filename!r}")
    if member.flag_bits & 1:
        raise ArchiveError(f"the archive is encrypted: {member.filename!r}")
    if member.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    ):  # what a reader needs memory for is bounded
        raise ArchiveError(f"the archive is packed by a method other than deflate: {member.filename!r}")
    return name


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, written: int, max_bytes: int) -> int:
    """Write one member after `written` bytes of others; returns the bytes of all."""
    if member.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return written
    place.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, place.open("xb") as out:
        while block := source.read(_BLOCK):
            written += len(block)
            _require_room(written, max_bytes)
            out.write(block)
    return written


def _require_room(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ArchiveError(
            f"the archive unpacks to more than {max_bytes:,} bytes, the most that one of its size may hold"
        )
