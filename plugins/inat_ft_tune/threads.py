"""How many threads a search uses: on busy cores, threads that wait for each other are many times slower than one."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

_REPEATS = 10


def choose_threads(most: int, measure: Callable[[int, float], float] | None = None) -> int:
    """Use 1 thread or `most`, whichever is faster now, and return the number.

    measure(threads, limit): returns the seconds of some convolutions; it may stop when it has taken longer than `limit`.
    """
    if most == 1:
        return most
    seconds = measure or _seconds
    alone = seconds(1, float("inf"))
    chosen = most if seconds(most, alone) < alone else 1
    torch.set_num_threads(chosen)
    return chosen


def _seconds(threads: int, limit: float) -> float:
    """Return the seconds of convolutions with a number of threads; infinity if they take longer than the limit."""
    torch.set_num_threads(threads)
    images, weight = torch.zeros(8, 64, 28, 28), torch.zeros(64, 64, 3, 3)
    with torch.inference_mode():
        F.conv2d(images, weight, padding=1)
        started = time.perf_counter()
        for _ in range(_REPEATS):
            F.relu_(F.conv2d(images, weight, padding=1))
            if time.perf_counter() - started > limit:
                return float("inf")
    return time.perf_counter() - started
