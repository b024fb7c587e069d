"""The device, the precision and the random state of a training."""

import atexit
import gc
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from inat_ft.engine.distributed import SINGLE_PROCESS, ProcessGroup, init_distributed, local_rank
from inat_ft.errors import InatFtError, UsageError
from inat_ft.text import pluralize

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_PRECISIONS = ("fp32", "fp16", "bf16")
"""Precisions in the order in which hardware supports them: newer hardware supports the earlier ones too."""
_ISAS_WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
"""Limits of oneDNN with which it emulates bfloat16."""
_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_OUT_OF_MEMORY = (
    "out of memory",
    "invalid buffer size",  # MPS
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "can't allocate memory",
    "could not create a primitive",  # oneDNN
)
_Module = TypeVar("_Module", bound=nn.Module)

atexit.register(gc.unfreeze)  # objects frozen between trainings are not freed at exit, and Triton reports them as leaks


@dataclass(frozen=True)
class Compute:
    """The device and the precision: fp32, or bf16 or fp16 (autocast; weights stay float32).

    forced: the user chose the precision. Then fp32 is exact on a CPU, and bf16 is used without a comparison.
    """

    device: torch.device
    precision: str
    forced: bool = False
    process_group: ProcessGroup = SINGLE_PROCESS
    warnings: Sequence[str] = ()

    @property
    def exact(self) -> bool:
        """Whether results must be equal bit for bit, which only a CPU offers: layers are not folded or rounded then."""
        return self.forced and self.precision == "fp32" and self.device.type == "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context that computes in the precision."""
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, _DTYPES[self.precision])

    def place(self, module: _Module) -> _Module:
        """Move a module to the device in channels-last format, whose BatchNorm is not reliable on an Apple GPU."""
        module.to(self.device)
        return module if self.device.type == "mps" else module.to(memory_format=torch.channels_last)

    def free_memory(self) -> None:
        """Return cached memory to the GPU after an out-of-memory error."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    def describe(self) -> str:
        """Return the name of the device."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "Apple GPU" if self.device.type == "mps" else f"CPU, {pluralize(torch.get_num_threads(), 'thread')}"


def choose_compute(device: str, precision: str) -> Compute:
    """Resolve `auto`, and join the other processes under torchrun, one GPU per process.

    On CUDA, fp32 switches TF32 off, and other precisions allow it. Raises UsageError when the device is not available or
    does not support the precision.
    """
    chosen = _choose_device(device)
    best, warnings = best_precision(chosen), []
    if precision == "bf16" and best != "bf16":
        if chosen.type == "cuda":
            problem = f"--precision bf16: {torch.cuda.get_device_name(chosen)} lacks bfloat16 (compute capability 8.0)"
            raise UsageError(problem, f"use --precision auto, which selects {best}")
        warnings = ["this processor emulates bfloat16, so bf16 is probably slower than fp32"]
    if precision == "fp16" and chosen.type != "cuda":
        raise UsageError(f"--precision fp16 requires a CUDA device, not {chosen.type}", "use --precision auto")
    process_group = init_distributed(chosen)
    if precision == "auto":  # the processes may have different GPUs
        own = torch.full((1,), _PRECISIONS.index(best), device=chosen)
        precision_of = process_group.all_gather(own, [1] * process_group.size)
        best = _PRECISIONS[min(int(each) for each in precision_of)]
    if chosen.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
    resolved = best if precision == "auto" else precision
    return Compute(chosen, resolved, precision != "auto", process_group, warnings)


def parse_device(device: str) -> torch.device:
    """Return a device by its name. Raises UsageError if torch does not know it."""
    try:
        return torch.device(device)
    except RuntimeError:
        raise UsageError(f"--device {device}: torch does not know this device", "try: --device auto") from None


def _choose_device(device: str) -> torch.device:
    """Return the device of this process. Raises UsageError when it is not available."""
    has_mps = torch.backends.mps.is_available()
    best = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    chosen = parse_device(best if device == "auto" else device)
    if chosen.type == "cuda":
        return _choose_gpu(device, chosen)
    if chosen.type == "mps" and not has_mps:
        raise UsageError("--device mps: torch finds no Apple GPU on this machine", "try: --device auto")
    if chosen.type == "mps" and local_rank() is not None and int(os.environ["WORLD_SIZE"]) > 1:
        raise UsageError(f"--device {device}: several processes cannot share an Apple GPU", "use --device cpu")
    return chosen


def _choose_gpu(device: str, chosen: torch.device) -> torch.device:
    """Return the GPU of this process: the chosen one, or the one with the process's number."""
    rank, processes = local_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not torch.cuda.is_available():
        raise UsageError(f"--device {device}: torch finds no CUDA device on this machine", "try: --device auto")
    if rank is not None:
        if chosen.index is not None and processes > 1:
            raise UsageError(f"--device {device}: {processes} processes cannot share one GPU", "use --device cuda")
        chosen = torch.device("cuda", rank if chosen.index is None else chosen.index)
    if (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(f"--device {device}: {chosen} does not exist; visible GPUs: {count}")
    capability, kernels = torch.cuda.get_device_capability(chosen), torch.cuda.get_arch_list()
    if not has_kernels(capability, kernels):
        raise UsageError(
            f"{torch.cuda.get_device_name(chosen)} has compute capability {capability[0]}.{capability[1]}, for which "
            f"torch {torch.__version__} has no kernels ({', '.join(kernels)})",
            "install a build of torch for this GPU, or use --device cpu",
        )
    return chosen


def has_kernels(capability: tuple[int, int], kernels: Sequence[str]) -> bool:
    """Return whether a build of torch runs on a GPU. kernels: as in `torch.cuda.get_arch_list()`, such as sm_80.

    A kernel runs on later GPUs with the same major version; an intermediate one (compute_80) on all later GPUs.
    """
    for kernel in kernels:
        kind, _, digits = kernel.partition("_")
        made = divmod(int(digits), 10) if digits.isdigit() else (99, 0)  # sm_90a is for one GPU only
        if made <= capability and (kind == "compute" or made[0] == capability[0]):
            return True
    return not kernels or bool(torch.version.hip)


def best_precision(device: torch.device) -> str:
    """Return the precision that the hardware computes fastest: bf16, fp16 or fp32."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return "bf16" if torch.version.hip or capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    if device.type != "cpu" or os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _ISAS_WITHOUT_BF16:
        return "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the GPU or the CPU ran out of memory."""
    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in text for words in _OUT_OF_MEMORY)


def too_little_memory(images: str) -> InatFtError:
    """Return the error for memory that does not suffice for the fewest images, such as `one image`."""
    return InatFtError(f"out of memory with {images}", "use a smaller --image-size or backbone")


def has_compiler() -> bool:
    """Return whether there is a C++ compiler, which torch.compile requires."""
    return any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "cl")))


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Restore torch's random state on exit; with `deterministic`, use deterministic algorithms only.

    Raises UsageError if CUDA was used before without the workspace setting that deterministic algorithms require.
    """
    is_started = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch declares no types here
    devices = [torch.cuda.current_device()] if is_started else []
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    if deterministic:
        if is_started and _CUBLAS_WORKSPACE not in os.environ:
            problem = "--deterministic must be set before this process uses the GPU"
            raise UsageError(problem, f"restart Python, or start it with {_CUBLAS_WORKSPACE}=:4096:8")
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS reads it once per process, so it is kept
        torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        if deterministic:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def release_memory() -> None:
    """Free the memory of the previous training. Call it between trainings in one process.

    Networks that torch.fx traced contain reference cycles, which only the garbage collector frees.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
