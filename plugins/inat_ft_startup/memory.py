"""Memory that is freed and taken again many times: glibc keeps it instead of returning it to the system.

Every training step frees and allocates hundreds of MiB. The system clears each page before it is used again, which takes a
quarter of the time of full fine-tuning on a CPU, and a third of that of the extraction of features in bfloat16.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)


def keep_memory() -> bool:
    """Make glibc keep freed memory, unless the user has set its parameters. Return whether it does."""
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # another library than glibc
        return False
    mallopt(_TRIM_THRESHOLD, 2**30)
    mallopt(_MMAP_THRESHOLD, 2**30) or mallopt(_MMAP_THRESHOLD, 2**25)  # the limit of old versions
    return True


def keep_memory_during(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function; glibc keeps freed memory while it runs, and returns it to the system at its end."""

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        kept = keep_memory()
        try:
            return function(*args, **options)
        finally:
            if kept:
                ctypes.CDLL(None).malloc_trim(0)

    return call
