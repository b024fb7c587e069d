"""A simulated GPU for machines without one: tensors that report `cuda:0` or `mps:0` and obey the rules of that device.

    with fake_device("cuda") as gpu:
        train(config(compute__device="cuda:0"), directories)

The values are computed on the CPU, so timing and streams are not simulated. These rules are checked, and broken ones raise
the error of PyTorch or a DeviceRuleError:

- Operands are on one device, except CPU tensors without dimensions and CPU indices.
- Tensors of the device cannot be pinned, and have no NumPy array.
- A copy to the device with `non_blocking` starts in pinned memory; `mps` allows none, in either direction.
- `mps` has no float64.

    with gpu.counting() as step:
        optimizer.step()
    assert not step.waits and len(step.kernels) <= 25

Counted in the thread that entered the context: host synchronizations (`waits`: the host waits for the device; `copies`: it
waits for a copy to the device), and `kernels`, which are all operations that neither return a view nor only allocate.
Background threads simulate the device too, but are not counted. `gpu.largest_allocation` limits a result in bytes: larger
ones raise the device's out-of-memory error. `gpu.free_bytes` is what `torch.cuda.mem_get_info` reports.
"""

from __future__ import annotations

import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_READS_VALUES = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_VIEWS = ("_unsafe_view", "_reshape_alias", "lift_fresh", "alias", "detach")
_NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
_active: FakeDevice


class DeviceRuleError(RuntimeError):
    """A rule was broken that a real device does not check."""


@dataclass
class Counts:
    """What happened in a part of the program."""

    waits: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)


@dataclass
class FakeDevice(Counts):
    """The simulated device; see the module."""

    kind: str = "cuda"
    free_bytes: int = 40 * 2**30
    total_bytes: int = 80 * 2**30
    capability: tuple[int, int] = (9, 0)
    largest_allocation: int | None = None
    pinned: dict[int, Tensor] = field(default_factory=dict)
    thread: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count what happens inside the context."""
        before, inside = [len(each) for each in (self.waits, self.copies, self.kernels)], Counts()
        yield inside
        for name, start in zip(("waits", "copies", "kernels"), before, strict=True):
            getattr(inside, name).extend(getattr(self, name)[start:])

    def count(self, counter: str, what: str) -> None:
        if threading.current_thread() is self.thread:
            getattr(self, counter).append(what if counter == "kernels" else f"{what} in {_caller()}")

    def is_target(self, device: object) -> bool:
        return device is not None and torch.device(device).type == self.kind

    def pin(self, tensor: Tensor) -> Tensor:
        """Return a pinned copy. It is kept, so that its address stays unique."""
        copy = tensor.clone()
        self.pinned[copy.untyped_storage().data_ptr()] = copy
        return copy

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def upload(self, source: Tensor, dtype: torch.dtype | None, non_blocking: bool, **layout: Any) -> Tensor:
        """Copy a tensor to the device."""
        self.check_upload(source, non_blocking)
        return DeviceTensor(source.detach().to(dtype or source.dtype, copy=True, **layout))

    def check_upload(self, source: Tensor, non_blocking: bool) -> None:
        if not non_blocking:
            self.count("copies", "copy to the device")
        elif self.kind != "cuda" or not self.is_pinned(source):
            memory = "pinned" if self.is_pinned(source) else "pageable"
            raise DeviceRuleError(f"non_blocking copy of {memory} memory to {self.device} in {_caller()}")

    def out_of_memory(self, wanted: int) -> RuntimeError:
        if self.kind == "cuda":
            return torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {wanted / 2**20:.2f} MiB.")
        return RuntimeError(f"MPS backend out of memory (Tried to allocate {wanted / 2**20:.2f} MB on private pool.)")


def _caller() -> str:
    """Return the innermost line of the package or its plugins that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/inat_ft" in path:
            return f"{path.rpartition('/inat_ft')[2].lstrip('/')}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "a test"


class DeviceTensor(Tensor):
    """A tensor that reports the simulated device. To C++ it is on the CPU, because autograd would ask CUDA for streams."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> DeviceTensor:
        if _active.kind == "mps" and elem.dtype == torch.float64:
            raise TypeError(_NO_FLOAT64)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            requires_grad=requires_grad,
        )
        made.elem = elem
        return made

    device = property(lambda self: _active.device)
    is_cuda = property(lambda self: _active.kind == "cuda")
    is_mps = property(lambda self: _active.kind == "mps")
    is_cpu = property(lambda self: False)

    def __repr__(self) -> str:
        return f"DeviceTensor({self.elem})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy: Tensor = DeviceTensor(self.elem.detach().clone())
        is_parameter = isinstance(self, torch.nn.Parameter)
        copy = torch.nn.Parameter(copy, self.requires_grad) if is_parameter else copy.requires_grad_(self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        _active.count("waits", "pickling")
        return self.elem.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Calls of the Python API that C++ would decide by the device, which it takes for the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, first = dict(kwargs or {}), args[0] if args else None
        if func in (torch.tensor, torch.as_tensor) and _active.is_target(kwargs.get("device")):
            return _active.upload(torch.tensor(first, dtype=kwargs.get("dtype")), None, False)
        if func is torch.empty and kwargs.pop("pin_memory", False):
            return _active.pin(func(*args, **kwargs))
        if isinstance(first, Tensor):
            handler = _METHODS.get(func)
            if handler:
                return handler(*args, **kwargs)
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _to(tensor: Tensor, *given: Any, **options: Any) -> Tensor:
    values = [*given, *(options.pop(name, None) for name in ("device", "dtype", "other", "tensor"))]
    like = next((value for value in values if isinstance(value, Tensor)), None)
    dtype = next(
        (value for value in values if isinstance(value, torch.dtype)), like.dtype if like is not None else None
    )
    device = next((value for value in values if isinstance(value, (str, torch.device))), None)
    flags = [value for value in given if isinstance(value, bool)]
    options |= dict(zip(("non_blocking", "copy"), flags, strict=False))
    target = torch.device(device) if device else like.device if like is not None else tensor.device
    non_blocking = options.pop("non_blocking", False)
    if target.type == tensor.device.type:
        return torch._C.TensorBase.to(tensor, dtype or tensor.dtype, **options)
    if isinstance(tensor, DeviceTensor):
        if non_blocking and _active.kind == "mps":  # the values could be read before they arrive
            raise DeviceRuleError(f"non_blocking copy from {_active.device} in {_caller()}")
        return _download(tensor).to(dtype or tensor.dtype, **options)
    return _active.upload(tensor, dtype, non_blocking, **options)


def _download(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    if not isinstance(tensor, DeviceTensor):
        return tensor
    _active.count("waits", "copy to the host")
    return tensor.elem.detach().clone()


def _double(tensor: Tensor) -> Tensor:
    if _active.kind == "mps" and isinstance(tensor, DeviceTensor):
        raise TypeError(_NO_FLOAT64)
    return torch._C.TensorBase.double(tensor)


def _tolist(tensor: Tensor) -> Any:
    return torch._C.TensorBase.tolist(_download(tensor))


def _numpy(tensor: Tensor, *given: Any, **options: Any) -> Any:
    if isinstance(tensor, DeviceTensor):
        raise TypeError(f"can't convert {_active.device} device type tensor to numpy. Use Tensor.cpu() first.")
    return torch._C.TensorBase.numpy(tensor, *given, **options)


def _array(tensor: Tensor, dtype: Any = None) -> Any:
    made = _numpy(tensor)
    return made if dtype is None else made.astype(dtype, copy=False)


def _pin_memory(tensor: Tensor) -> Tensor:
    if isinstance(tensor, DeviceTensor):
        raise RuntimeError(f"cannot pin 'torch.{_active.kind}.Tensor' only dense CPU tensors can be pinned")
    return tensor if _active.is_pinned(tensor) else _active.pin(tensor)


def _is_pinned(tensor: Tensor) -> bool:
    return not isinstance(tensor, DeviceTensor) and _active.is_pinned(tensor)


def _one_hot(labels: Tensor, num_classes: int = -1) -> Tensor:
    """Compute on the CPU: once something was compiled, torch splits it into operations that create a tensor there."""
    if not isinstance(labels, DeviceTensor):
        return torch.nn.functional.one_hot(labels, num_classes)
    _active.count("kernels", "one_hot")
    with torch.no_grad():
        return DeviceTensor(torch.nn.functional.one_hot(labels.elem, num_classes))


_METHODS: dict[Any, Callable[..., Any]] = {
    torch.nn.functional.one_hot: _one_hot,
    Tensor.to: _to,
    Tensor.cpu: _download,
    Tensor.double: _double,
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.__array__: _array,
    Tensor.pin_memory: _pin_memory,
    Tensor.is_pinned: _is_pinned,
}


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU by the rules of the simulated device."""
    gpu, name = _active, func._schema.name.partition("::")[2]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    device = kwargs.get("device")
    if not ours and not gpu.is_target(device):
        return func(*args, **kwargs)
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")} | ({"pin_memory": False} if "pin_memory" in kwargs else {})
    if name == "copy_" and len(ours) == 1 and len(tensors) == 2:
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if isinstance(args[0], DeviceTensor):
            gpu.check_upload(args[1], non_blocking)
        elif not non_blocking:
            gpu.count("waits", "copy to the host")
        func(*tree_map(_unwrap, args))
        return args[0]
    _check_operands(name, args, [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)], bool(ours))
    if name in _READS_VALUES:
        gpu.count("waits", name)
    out = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
    returns = func._schema.returns
    is_view = name in _VIEWS or (returns and returns[0].alias_info is not None and not returns[0].alias_info.is_write)
    if not is_view:
        sizes = [leaf.nbytes for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if gpu.largest_allocation is not None and max(sizes, default=0) > gpu.largest_allocation:
            raise gpu.out_of_memory(max(sizes))
        if not name.startswith(("empty", "new_empty")):
            gpu.count("kernels", name)
    return tree_map(lambda leaf: _wrap(leaf, ours), out)


def _check_operands(name: str, args: Any, others: list[Tensor], has_ours: bool) -> None:
    """Raise the error for CPU operands; count what makes the host wait for an index."""
    if name in _INDEXED:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            _active.count("waits", "index with a mask")
        if any(other is index for other in others for index in indices):
            _active.count("copies", "index on the CPU")
        others = [other for other in others if all(other is not index for index in indices)]
    if has_ours and any(other.ndim or (other is args[0] and name.endswith("_")) for other in others):
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{_active.device} and cpu! ({name} in {_caller()})"
        )


def _unwrap(value: Any) -> Any:
    return value.elem if isinstance(value, DeviceTensor) else value


def _wrap(value: Any, operands: list[DeviceTensor]) -> Any:
    """Return a result as a tensor of the device; for an operation in place, its operand."""
    if not isinstance(value, Tensor):
        return value
    changed = [operand for operand in operands if operand.elem is value]
    return changed[0] if changed else DeviceTensor(value)


class _Event:
    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    def synchronize(self) -> None:
        _active.count("waits", "event")


@contextmanager
def fake_device(kind: str = "cuda", **settings: Any) -> Iterator[FakeDevice]:
    """Simulate a device, `cuda` or `mps`, in this thread and in threads that it starts. settings: fields of FakeDevice."""
    import torch._dynamo  # before `torch.cuda` is patched; dispatch modes import it

    global _active  # noqa: PLW0603 - one simulated device at a time
    _active = gpu = FakeDevice(kind=kind, **settings)
    run_thread, load, autocast, one_hot = threading.Thread.run, torch.load, torch.autocast, torch.nn.functional.one_hot

    def run_simulated(thread: threading.Thread) -> None:
        with _Functions(), _Operations():
            run_thread(thread)

    def load_simulated(file: Any, map_location: Any = None, **options: Any) -> Any:
        found = load(file, map_location="cpu", **options)
        if not gpu.is_target(map_location):
            return found
        return tree_map(lambda leaf: DeviceTensor(leaf) if isinstance(leaf, Tensor) else leaf, found)

    def one_hot_simulated(tensor: Tensor, num_classes: int = -1) -> Tensor:  # it allocates by the device of C++
        return (
            DeviceTensor(one_hot(tensor.elem, num_classes))
            if isinstance(tensor, DeviceTensor)
            else one_hot(tensor, num_classes)
        )

    properties = namedtuple("Properties", "name total_memory major minor multi_processor_count")
    values: dict[Any, dict[str, Any]] = {
        torch: {
            "load": load_simulated,
            "autocast": lambda kind, dtype=None, **options: autocast("cpu", dtype, **options),
            "inference_mode": torch.no_grad,  # tensors of inference mode cannot be wrapped
        },
        torch.nn.functional: {"one_hot": one_hot_simulated},
        torch.optim.Optimizer: {"_accelerator_graph_capture_health_check": lambda self: None},
        import_module("torch.optim.optimizer"): {
            "_foreach_supported_types": [Tensor, torch.nn.Parameter, DeviceTensor]
        },
        import_module("torch.utils._foreach_utils"): {"_foreach_supported_types": [Tensor, DeviceTensor]},
        torch.backends.mps: {"is_available": lambda: kind == "mps"},
        torch.mps: {
            "empty_cache": lambda: None,
            "manual_seed": lambda seed: None,
            "recommended_max_memory": lambda: gpu.total_bytes,
            "driver_allocated_memory": lambda: gpu.total_bytes - gpu.free_bytes,
            "current_allocated_memory": lambda: gpu.total_bytes - gpu.free_bytes,
        },
        torch.cuda: {
            "is_available": lambda: kind == "cuda",
            "device_count": lambda: int(kind == "cuda"),
            "is_bf16_supported": lambda including_emulation=True: gpu.capability >= (8, 0),
            "get_device_name": lambda device=None: "Simulated GPU",
            "get_device_capability": lambda device=None: gpu.capability,
            "get_device_properties": lambda device=None: properties(
                "Simulated GPU", gpu.total_bytes, *gpu.capability, 132
            ),
            "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90"],
            "mem_get_info": lambda device=None: (gpu.free_bytes, gpu.total_bytes),
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
            "manual_seed_all": lambda seed: None,
            "current_device": lambda: 0,
            "current_stream": lambda device=None: None,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: gpu.count("waits", "synchronize"),
            "Event": _Event,
            "_lazy_init": lambda: None,
        },
    }
    group_tensors = torch._C._group_tensors_by_device_and_dtype

    def group_simulated(lists: Any, with_indices: bool = False) -> Any:
        groups = group_tensors(lists, with_indices)
        return {
            (next((tensor.device for tensor in tensors[0] if tensor is not None), device), dtype): (tensors, indices)
            for (device, dtype), (tensors, indices) in groups.items()
        }

    values[torch._C] = {"_group_tensors_by_device_and_dtype": group_simulated}
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for owner, attributes in values.items():
            for name, value in attributes.items():
                stack.enter_context(patch.object(owner, name, value, create=True))
        stack.enter_context(patch.object(threading.Thread, "run", run_simulated))
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.enter_context(_Functions())
        stack.enter_context(_Operations())
        yield gpu
