"""The device and the precision that hardware gets, and the errors of GPUs, without a GPU."""

import ast
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import inat_ft
from inat_ft.engine import device as devices
from inat_ft.engine.device import Compute, choose_compute, has_kernels, is_out_of_memory, reproducible
from inat_ft.engine.distributed import ProcessGroup
from inat_ft.errors import UsageError

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
GPUS = {
    "Tesla P100": (6, 0),
    "Tesla V100": (7, 0),
    "Tesla T4": (7, 5),
    "A100": (8, 0),
    "RTX 4090": (8, 9),
    "H100": (9, 0),
}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """A function that installs GPUs by name, and a build of torch with kernels for some of them."""

    def install(*names: str, kernels: Sequence[str] = (*WHEEL, "sm_60", "sm_70")) -> None:
        def at(where: object) -> int:
            return torch.device(where).index or 0

        fakes = {
            "is_available": lambda: True,
            "device_count": lambda: len(names),
            "get_device_name": lambda where: names[at(where)],
            "get_device_capability": lambda where: GPUS[names[at(where)]],
            "get_arch_list": lambda: list(kernels),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        # the number of the precision of this process, which the processes compare
        monkeypatch.setattr(torch, "full", lambda size, value, device: torch.tensor([value]))

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield install
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("Tesla P100", "fp32"),
        ("Tesla V100", "fp16"),
        ("Tesla T4", "fp16"),
        ("A100", "bf16"),
        ("RTX 4090", "bf16"),
        ("H100", "bf16"),
    ],
)
def test_auto_selects_the_precision_that_the_gpu_has(gpus, name: str, precision: str) -> None:
    gpus(name)
    assert choose_compute("auto", "auto").precision == precision
    if precision == "bf16":
        assert choose_compute("cuda", "bf16").precision == "bf16"
    else:
        with pytest.raises(UsageError, match=f"bf16: {name} lacks bfloat16") as caught:
            choose_compute("cuda", "bf16")
        assert precision in caught.value.hint


def test_each_gpu_of_a_machine_has_its_own_precision(gpus) -> None:
    gpus("A100", "Tesla T4")
    assert [choose_compute(f"cuda:{number}", "auto").precision for number in (0, 1)] == ["bf16", "fp16"]
    with pytest.raises(UsageError, match="cuda:2 does not exist; visible GPUs: 2"):
        choose_compute("cuda:2", "auto")


def test_processes_with_different_gpus_use_a_precision_that_all_of_them_have(gpus, monkeypatch) -> None:
    gpus("A100", "Tesla T4")

    class Together(ProcessGroup):
        def all_gather(self, rows, counts):
            return [torch.tensor([2]), torch.tensor([1])]

    monkeypatch.setattr(devices, "init_distributed", lambda device: Together(0, 2))
    assert choose_compute("cuda", "auto").precision == "fp16"


@pytest.mark.parametrize("native", [True, False])
def test_bf16_on_a_cpu_without_it_gives_a_warning(monkeypatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert choose_compute("cpu", "auto").precision == ("bf16" if native else "fp32")
    assert ["emulates bfloat16" in line for line in choose_compute("cpu", "bf16").warnings] == [True] * (not native)


@pytest.mark.parametrize(
    ("limit", "precision"), [("avx2", "fp32"), ("AVX512_CORE", "fp32"), ("AVX512_CORE_BF16", "bf16")]
)
def test_a_limit_of_onednn_decides_about_bf16(monkeypatch, limit: str, precision: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert choose_compute("cpu", "auto").precision == precision


def test_fp16_requires_cuda() -> None:
    with pytest.raises(UsageError, match="requires a CUDA device, not cpu"):
        choose_compute("cpu", "fp16")


def test_an_apple_gpu_computes_in_fp32_without_channels_last(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "full", lambda size, value, device: torch.tensor([value]))
    compute = choose_compute("auto", "auto")
    assert (compute.device.type, compute.precision) == ("mps", "fp32")
    formats = []
    monkeypatch.setattr(nn.Module, "to", lambda module, *where, **how: formats.append((where, how)) or module)
    compute.place(nn.Conv2d(3, 4, 3))
    assert formats == [((torch.device("mps"),), {})]
    cleared = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: cleared.append("mps"))
    compute.free_memory()
    assert cleared == ["mps"]
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="cannot share an Apple GPU"):
        choose_compute("auto", "auto")


def test_processes_do_not_share_a_gpu(gpus, monkeypatch) -> None:
    gpus("A100", "A100")
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "init_distributed", lambda device: ProcessGroup())
    with pytest.raises(UsageError, match="--device cuda:0: 2 processes cannot share one GPU"):
        choose_compute("cuda:0", "auto")
    assert choose_compute("cuda", "auto").device == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="cuda:2 does not exist; visible GPUs: 2"):
        choose_compute("auto", "auto")


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("auto", True), ("bf16", True)])
def test_fp32_switches_tf32_off_and_other_precisions_allow_it(gpus, precision: str, allowed: bool) -> None:
    gpus("H100")
    torch.backends.cudnn.allow_tf32 = not allowed
    choose_compute("cuda", precision)
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.backends.cudnn.allow_tf32 is allowed


@pytest.mark.parametrize(
    ("capability", "kernels", "runs"),
    [
        ((7, 5), WHEEL, True),
        ((7, 0), WHEEL, False),
        ((8, 9), WHEEL, True),
        ((9, 0), WHEEL, True),
        ((12, 1), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((11, 0), [*WHEEL, "compute_100"], True),
        ((9, 0), ["sm_80", "sm_90a"], False),
        ((9, 0), [], True),  # a build for CPUs says nothing
    ],
)
def test_a_build_of_torch_has_kernels_for_a_gpu(capability, kernels, runs: bool) -> None:
    assert has_kernels(capability, kernels) is runs


def test_a_gpu_without_kernels_is_refused(gpus) -> None:
    gpus("Tesla V100", kernels=WHEEL)
    with pytest.raises(UsageError, match=r"Tesla V100 has compute capability 7\.0, for which torch .* has no kernels"):
        choose_compute("auto", "auto")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 9 MB)"), True),
        (RuntimeError("Invalid buffer size: 12.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    ],
)
def test_wordings_of_out_of_memory_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_deterministic_is_refused_after_cuda_started_without_its_workspace(monkeypatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(UsageError, match="before this process uses the GPU"), reproducible(deterministic=True):
        pass
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_autocast_uses_the_precision() -> None:
    layer = nn.Linear(4, 4)
    for precision, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        with Compute(torch.device("cpu"), precision).autocast():
            assert layer(torch.ones(2, 4)).dtype == dtype


def test_tensors_become_float64_on_the_cpu_only() -> None:
    """MPS has no float64."""
    allowed = ("cpu",)
    found = []
    for folder in ("engine", "models", "evaluation", "data"):
        for file in (Path(inat_ft.__file__).parent / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "double":
                    called = node.func.value.func if isinstance(node.func.value, ast.Call) else None
                    if not (isinstance(called, ast.Attribute) and called.attr in allowed):
                        found.append(f"{file.name}:{node.lineno}")
    assert found == []
