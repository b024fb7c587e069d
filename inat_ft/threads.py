"""Threads and cores."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decoders(workers: int = 0) -> ThreadPoolExecutor:
    """Return a pool of threads for decoding images, which releases the GIL. 0: one per core, divided by local processes."""
    workers = workers or max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return ThreadPoolExecutor(workers, thread_name_prefix="decode")


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch, and restore it on exit. Code that uses a pool of threads itself needs only one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
