"""Where caches live."""

import os
from pathlib import Path


def cache_folder(chosen: Path | None) -> Path:
    """The chosen folder, or the platform's folder for caches."""
    if chosen is not None:
        return chosen
    from platformdirs import user_cache_path

    ensure_home()
    return user_cache_path("inat-ft", appauthor=False)


def ensure_home() -> Path | None:
    """Give this process a temporary home folder if it has none; return that folder, or None if it has one.

    A container may run as a user that /etc/passwd does not list, without HOME. Every library that looks for the home
    folder, for weights or settings, then finds the same one; it is the user's own and is found again by the next process.
    """
    try:
        Path.home()
    except RuntimeError:
        home = _temporary_home()
        os.environ["USERPROFILE" if os.name == "nt" else "HOME"] = str(home)
        return home
    return None


def _temporary_home() -> Path:
    import tempfile

    user = os.getuid() if hasattr(os, "getuid") else "user"
    home = Path(tempfile.gettempdir()) / f"inat-ft-{user}"
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        found = home.lstat()
        own = found.st_uid == user or not hasattr(os, "getuid")
        if own and not home.is_symlink() and home.is_dir():
            return home
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="inat-ft-"))  # the name is taken by somebody else
