"""The cache folder, the home folder, the folders of cross-validations, and what can be written."""

import os
import re
import shutil
from pathlib import Path

from inat_ft.errors import UsageError

FOLDS_SUMMARY = "cross-validation.json"
"""The file that makes a folder a cross-validation."""


def cache_folder(chosen: str | os.PathLike[str] | None = None) -> Path:
    """Return the chosen folder, else INAT_FT_CACHE_DIR, else the cache folder of the platform."""
    if chosen := chosen or os.environ.get("INAT_FT_CACHE_DIR"):
        return Path(chosen)
    from platformdirs import user_cache_path

    ensure_home()
    return user_cache_path("inat-ft", appauthor=False)


def ensure_home() -> Path | None:
    """Set a temporary home folder if there is none, as in a container whose user is not in /etc/passwd.

    Returns that folder, or None if there is a home folder. Libraries and later processes use the same temporary folder.
    """
    try:
        Path.home()
        return None
    except RuntimeError:
        folder = _temporary_home()
        os.environ["USERPROFILE" if os.name == "nt" else "HOME"] = str(folder)
        return folder


def _temporary_home() -> Path:
    import tempfile

    user = getattr(os, "getuid", int)()
    folder = Path(tempfile.gettempdir()) / f"inat-ft-{user}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == user:
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="inat-ft-"))  # the folder belongs to another user


def is_cross_validation(path: Path) -> bool:
    """Return whether a path is a cross-validation: its folder or its summary."""
    return path.name == FOLDS_SUMMARY or (path / FOLDS_SUMMARY).is_file()


def relative_path(path: Path, folder: Path) -> str:
    """Return a path relative to a folder, with slashes on each platform; the whole path if it is on another Windows drive."""
    try:
        return os.path.relpath(path, folder).replace(os.sep, "/")
    except ValueError:
        return path.as_posix()


def free_space(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.exists())).free


def check_name(name: str) -> None:
    """Raise UsageError if Windows cannot store a folder of this name, which may be copied there later."""
    if re.fullmatch(r"(?i:con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*\.", name):
        raise UsageError(f"Windows cannot store a folder with the name {name}", "choose another --name")


def check_writable(path: Path, kind: str = "file", option: str = "") -> None:
    """Raise UsageError if a file or folder cannot be written at a path. Missing parent folders are created later.

    kind: `file`, `folder`, or an empty string for either. option: its name, for the message.
    """
    name = f"{option} {path}".lstrip()
    found = "folder" if os.path.isdir(path) else "file" if os.path.isfile(path) else ""
    if os.path.lexists(path) and (found != kind if kind else not found):
        raise UsageError(f"{name} is {f'a {found}' if found else 'not a file or folder'}", f"name a {kind or 'file'}")
    absolute = Path(os.path.abspath(path))
    parent = next((each for each in absolute.parents if os.path.lexists(each)), absolute)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        problem = "writable" if parent.is_dir() else "a folder"
        raise UsageError(f"cannot write {name}: {parent} is not {problem}", "choose another folder")
