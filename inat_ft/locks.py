"""File locks, with a clear error on file systems without them."""

from __future__ import annotations

import errno
from typing import Any

import filelock
from filelock import Timeout

from inat_ft.errors import InatFtError

__all__ = ["FileLock", "Timeout"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FileLock(filelock.FileLock):
    """A file lock, which the kernel releases when the process ends, even if it is killed."""

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """Acquire the lock. Raises InatFtError if the file system has no locks, and Timeout as filelock does."""
        try:
            return super().acquire(*args, **kwargs)
        except NotImplementedError as error:
            raise self._no_locks(str(error)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            raise self._no_locks(error.strerror or str(error)) from None

    def _no_locks(self, reason: str) -> InatFtError:
        return InatFtError(
            f"cannot lock {self.lock_file}: its file system has no file locks ({reason})",
            "use folders on a local disk (--runs-dir, --sweeps-dir, --cache-dir), or start the lock service of NFS",
        )
