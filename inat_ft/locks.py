"""File locks, with a clear error on file systems without them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
from filelock import Timeout

from inat_ft.errors import BusyError, InatFtError

__all__ = ["FileLock", "Timeout", "lock_run"]

_TEMPORARY = (".*.????????.tmp", "figures/.*.????????.tmp", ".tmp??????")  # the last one is from safetensors
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FileLock(filelock.FileLock):
    """A file lock, which the kernel releases when the process ends, even if it is killed."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Acquire the lock. Raises InatFtError if the file system has no locks, and Timeout as filelock does."""
        try:
            return super().acquire(*args, **kwargs)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:  # also Timeout
                raise
            raise InatFtError(
                f"cannot lock {self.lock_file}: its file system has no file locks ({error})",
                "use folders on a local disk for runs, sweeps and caches, or start the lock service of NFS",
            ) from None


@contextmanager
def lock_run(directory: Path) -> Iterator[None]:
    """Lock the directory of a run, and remove the temporary files that killed processes left in it.

    Raises BusyError while another process uses the run.
    """
    lock = FileLock(directory / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"another process is using the run {directory}", "wait until it has finished") from None
    try:
        for pattern in _TEMPORARY:
            for left in directory.glob(pattern):
                with suppress(OSError):
                    left.unlink()
        yield
    finally:
        lock.release()
