"""The cache folder and the home folder."""

import os
from pathlib import Path


def cache_folder(chosen: Path | None) -> Path:
    """Return the chosen folder, or else the cache folder of the platform."""
    if chosen is not None:
        return chosen
    from platformdirs import user_cache_path

    ensure_home()
    return user_cache_path("inat-ft", appauthor=False)


def ensure_home() -> Path | None:
    """Set a temporary home folder if there is none, as in a container whose user is not in /etc/passwd.

    Returns that folder, or None if there is a home folder. Libraries and later processes use the same temporary folder.
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
    return Path(tempfile.mkdtemp(prefix="inat-ft-"))  # the folder belongs to another user
