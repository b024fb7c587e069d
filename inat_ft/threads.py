"""How many threads there is room for."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoders(workers: int = 0) -> ThreadPoolExecutor:
    """A pool of threads that decode images, which release Python's lock while they do; 0 is one a core."""
    return ThreadPoolExecutor(workers or num_cores(), thread_name_prefix="decode")


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep torch from splitting small work over cores, where threads of ours do that already."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
