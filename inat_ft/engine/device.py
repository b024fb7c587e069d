"""The device, the precision and the random state of a training."""

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
    """The device and the precision: fp32, or bf16 (autocast; weights stay float32).

    forced: the user chose the precision. Then fp32 is exact on a CPU, and bf16 is used without a comparison.
    """

    device: torch.device
    precision: str
    forced: bool = False
    process_group: ProcessGroup = SINGLE_PROCESS

    @property
    def exact(self) -> bool:
        """Whether results must be equal bit for bit, which only a CPU offers: layers are not folded or rounded then."""
        return self.forced and self.precision == "fp32" and self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context that computes in bfloat16 if the precision is bf16."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, torch.bfloat16)

    def free_memory(self) -> None:
        """Return cached memory to the GPU after an out-of-memory error."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def describe(self) -> str:
        """Return the name of the device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "Apple GPU" if self.device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def choose_compute(device: str, precision: str) -> Compute:
    """Resolve `auto`, and join the other processes under torchrun, one GPU per process.

    Raises UsageError when the device is not available.
    """
    chosen = torch.device(_best_device() if device == "auto" else device)
    if chosen.type == "cuda" and chosen.index is None and local_rank() is not None:
        chosen = torch.device("cuda", local_rank())
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device on this machine", "try: --device auto")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch finds no Apple GPU on this machine", "try: --device auto")
    resolved = precision if precision != "auto" else "bf16" if has_bf16(chosen) else "fp32"
    return Compute(chosen, resolved, forced=precision != "auto", process_group=init_distributed(chosen))


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the GPU or the CPU ran out of memory; oneDNN raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        message in str(error) for message in ("can't allocate memory", "could not create a primitive")
    )


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which torch.compile requires."""
    return any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl")))


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Restore torch's random state on exit; with `deterministic`, use deterministic algorithms only."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(_CUBLAS_WORKSPACE)
    if deterministic:
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            if workspace is None:
                del os.environ[_CUBLAS_WORKSPACE]


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of threads of torch, and restore it on exit."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
