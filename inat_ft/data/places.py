"""Where caches live."""

from pathlib import Path


def cache_folder(chosen: Path | None) -> Path:
    """The chosen folder, or the platform's folder for caches."""
    if chosen is not None:
        return chosen
    from platformdirs import user_cache_path

    return user_cache_path("inat-ft", appauthor=False)
