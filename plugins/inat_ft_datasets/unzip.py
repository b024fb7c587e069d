"""Unpack a zip archive that is not trusted."""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from inat_ft.errors import DataError, is_disk_full
from inat_ft.progress import ProgressFn
from inat_ft_datasets.atomic_dir import atomic_directory

MAX_BYTES = 64 * 2**30
"""Maximum size of the unpacked files."""
MAX_FILES = 4_000_000
MAX_RATIO = 100
"""Maximum size of the unpacked files relative to the archive, if they exceed 16 MiB; the ratio of photographs is about 1."""
MAX_DEPTH = 32

_BLOCK = 2**20
_RATIO_APPLIES_FROM = 2**24
_INVALID_NAME = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_DAMAGED = (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, zlib.error)


class ArchiveError(DataError):
    """The archive is damaged or refused, as opposed to a problem with the target folder."""


def unpack(
    archive: Path,
    target: Path,
    inside: str,
    progress: ProgressFn,
    max_bytes: int = MAX_BYTES,
    check: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Unpack a zip file so that its folder `inside` becomes `target`, all of it or nothing.

    Call it under `file_lock(target)`. progress is called with (done, total) in files; check is called with the unpacked
    folder before it is renamed, and can raise ArchiveError. Raises ArchiveError for a damaged archive, names outside its
    root, links, devices, encryption, a missing `inside`, and more than max_bytes, MAX_FILES or MAX_RATIO, counted while
    writing, because headers can be wrong. Raises DataError if the files cannot be written.
    """
    max_bytes = min(max_bytes, max(_RATIO_APPLIES_FROM, MAX_RATIO * archive.stat().st_size))
    try:
        with atomic_directory(target) as work:
            _extract(archive, work, inside, progress, max_bytes)
            check(work)
    except OSError as error:
        hint = "free some space and try again" if is_disk_full(error) else "check that the folder is writable"
        raise DataError(f"cannot unpack {archive} to {target.parent}: {error.strerror or error}", hint) from error


def _extract(archive: Path, work: Path, inside: str, progress: ProgressFn, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [(member, _validate_member(member)) for member in opened.infolist()]
            wanted = [(member, place) for member, place in members if place.parts[0] == inside]
            if len(members) > MAX_FILES:
                raise ArchiveError(f"the archive contains {len(members):,} files, more than {MAX_FILES:,}")
            _limit_size(sum(member.file_size for member, _ in wanted), max_bytes)
            if not any(len(place.parts) > 1 for _, place in wanted):
                raise ArchiveError(f"{archive} does not contain a folder {inside}", "it is not the expected archive")
            written = 0
            for number, (member, place) in enumerate(wanted, 1):
                written = _write(opened, member, work.joinpath(*place.parts[1:]), written, max_bytes)
                progress(number, len(wanted))
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise ArchiveError(f"{archive} contains a name twice: {Path(error.filename).relative_to(work)}") from error
    except OSError as error:
        if error.errno not in _INVALID_NAME:
            raise
        name = Path(error.filename or "").name
        raise ArchiveError(f"{archive} contains an invalid name, {name[:40]!r}...: {error.strerror}") from error
    except _DAMAGED as error:
        raise ArchiveError(f"{archive} is damaged: {error}", "remove it and fetch it again") from error


def _validate_member(member: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of a member. Raises ArchiveError unless it is a plain file or folder below the archive's root."""
    name, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
    is_outside = name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename
    problems = (
        ("an invalid name", "\0" in member.orig_filename),
        ("a name outside its folder", is_outside or not name.parts),
        (f"folders more than {MAX_DEPTH} deep", len(name.parts) > MAX_DEPTH),
        ("a link or device", kind not in (0, stat.S_IFREG, stat.S_IFDIR)),
        ("an encrypted file", bool(member.flag_bits & 1)),
        # the memory that these methods need is limited
        ("a file not packed by deflate", member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
    )
    for problem, applies in problems:
        if applies:
            raise ArchiveError(f"the archive contains {problem}: {member.orig_filename[:80]!r}")
    return name


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, place: Path, written: int, max_bytes: int) -> int:
    """Write one member, and return the total number of bytes written, including the earlier `written`."""
    if member.is_dir():
        place.mkdir(parents=True, exist_ok=True)
        return written
    place.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as source, place.open("xb") as out:
        while block := source.read(_BLOCK):
            written += len(block)
            _limit_size(written, max_bytes)
            out.write(block)
    return written


def _limit_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise ArchiveError(f"the archive unpacks to more than {max_bytes:,} bytes, the maximum for its size")
