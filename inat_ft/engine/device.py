"""The device and the precision, chosen once and said in words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from inat_ft.engine.distributed import SINGLE_PROCESS, ProcessGroup, init_distributed, local_rank
from inat_ft.errors import UsageError

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@dataclass(frozen=True)
class Compute:
    """Where the arithmetic is done and in which precision: fp32 or bf16 (autocast, weights stay float32).

    forced: the precision was asked for and not chosen: fp32 then means exact on a CPU, bf16 means in any case.
    """

    device: torch.device
    precision: str
    forced: bool = False
    process_group: ProcessGroup = SINGLE_PROCESS
    """The processes that train together."""

    @property
    def exact(self) -> bool:
        """Whether nothing may be folded or rounded. Elsewhere than on a CPU the same sum has other bits from time to time."""
        return self.forced and self.precision == "fp32" and self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """bfloat16 where it is safe, when the precision asks for it."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def free_memory(self) -> None:
        """Give back what the allocator holds for later, after memory ran out."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> str:
        """The device's name, for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "Apple GPU" if self.device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def choose_compute(device: str, precision: str) -> Compute:
    """Resolve `auto`, and meet the other processes under torchrun, one GPU each.

    Raises UsageError when the device is not there.
    """
    chosen = torch.device(_best_device() if device == "auto" else device)
    if chosen.type == "cuda" and chosen.index is None and local_rank() is not None:
        chosen = torch.device("cuda", local_rank())
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: this machine has no CUDA device that torch can use", "try: --device auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: there are only {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: this machine has no Apple GPU that torch can use", "try: --device auto")
    if precision != "auto":
        return Compute(chosen, precision, forced=True, process_group=init_distributed(chosen))
    return Compute(chosen, "bf16" if has_bf16(chosen) else "fp32", process_group=init_distributed(chosen))


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 by itself, and so gains by it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU, where oneDNN says it in its own way."""
    said = any(words in str(error) for words in ("can't allocate memory", "could not create a primitive"))
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs."""
    return any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl")))


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Leave torch's random state as it is found, and use only deterministic algorithms inside, if asked to."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), _deterministic() if deterministic else nullcontext():
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # read when CUDA starts; cuBLAS is not deterministic without it
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        if workspace is None:
            del os.environ[_CUBLAS_WORKSPACE]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with this many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
