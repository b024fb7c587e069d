"""Make glibc reuse freed memory instead of returning it to the operating system.

Every training step frees and allocates hundreds of MiB. By default glibc returns large blocks at once, and the system clears
each page before it is used again. This takes a quarter of the time of full fine-tuning on a CPU.
"""

import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_LARGE, _LARGEST_IN_OLD_VERSIONS = 2**30, 2**25


def keep_memory() -> None:
    """Raise the thresholds of malloc, if the C library is glibc and the user has not set any."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _LARGE)
        mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGEST_IN_OLD_VERSIONS)
