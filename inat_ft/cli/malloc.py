"""Memory that is freed stays with the process, for the next step, instead of going back to the system page by page.

A step of training frees and takes the same hundreds of MiB again. By default glibc gives large blocks back at once, and the
system clears every page before it hands it out anew: a quarter of the time of full fine-tuning on a CPU.
"""

import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_LARGE, _LARGEST_IN_OLD_VERSIONS = 2**30, 2**25


def keep_memory() -> None:
    """Have glibc keep what is freed. Other C libraries stay as they are, and so does what the user has set."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _LARGE)
        mallopt(_MMAP_THRESHOLD, _LARGE) or mallopt(_MMAP_THRESHOLD, _LARGEST_IN_OLD_VERSIONS)
