"""What a command does first to be faster: defer imports, keep freed memory, and limit spinning."""

import atexit
import gc
import os
import sys
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from inat_ft_startup.memory import keep_memory

_PACKAGE, _UTILS = "torch._dynamo", "torch._dynamo.utils"
_EXPORT, _ONNX, _HUB = "torch.export", "torchvision.ops._register_onnx_ops", "torch.hub"
_TASKS = ("detection", "optical_flow", "segmentation", "video")
_UNUSED = ("torch.distributions", "torchvision.datasets", *(f"torchvision.models.{task}" for task in _TASKS))
_NOT_PACKAGES = (_UTILS, _ONNX, _HUB)
_MAX_NEW_OBJECTS = 100_000


class _StandIn(ModuleType):
    """A module that is replaced by the real one when it lacks an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self.__name__ not in _NOT_PACKAGES):
            raise AttributeError(name)  # inspect looks them up in all modules; imports of submodules use __path__
        return getattr(_real(self.__name__), name)


class _Loaded(MetaPathFinder, Loader):
    """Prevents a second run of submodules that their package has imported while it replaced its stand-in."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in sys.modules and target is None else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        spec.loader_state = sys.modules[spec.name].__spec__
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__ and module.__spec__.loader_state


def _real(name: str) -> ModuleType:
    for known in (_PACKAGE, _UTILS) if name in (_PACKAGE, _UTILS) else (name,):
        if isinstance(sys.modules.get(known), _StandIn):
            del sys.modules[known]
    return import_module(name)


def _call(module: str, function: str, *arguments: Any, **settings: Any) -> Any:
    return getattr(_real(module), function)(*arguments, **settings)


def defer_imports() -> None:
    """Replace rarely needed modules with stand-ins. Importing them takes as long as the rest of a short run.

    torch imports its exporter, its hub and its distributions; torchvision imports data sets, detection and `torch.onnx`;
    optimizers import `torch._dynamo` to exclude methods from tracing. The stand-ins provide the few functions that these
    imports and torch.fx use. Any other attribute imports the real module.
    """
    if _PACKAGE in sys.modules:
        return
    names = [_PACKAGE, _UTILS]
    if "torch" not in sys.modules:
        names += [_EXPORT, _ONNX, _HUB, *_UNUSED]
    stand_ins = {name: _StandIn(name) for name in names}
    provided: dict[str, dict[str, Any]] = {
        _PACKAGE: {
            "disable": lambda function=None, *_, **__: function or (lambda other: other),
            "graph_break": lambda *_, **__: None,
        },
        _UTILS: {"is_compile_supported": partial(_call, _UTILS, "is_compile_supported")},
        _EXPORT: {name: partial(_call, _EXPORT, name) for name in ("export", "load", "register_dataclass", "save")},
        _ONNX: {"_register_custom_op": lambda: None},
        _HUB: {name: partial(_call, _HUB, name) for name in ("_get_torch_home", "load_state_dict_from_url")},
    }
    for name, stand_in in stand_ins.items():
        vars(stand_in).update(provided.get(name, {}))
    sys.modules |= stand_ins
    sys.meta_path.insert(0, _Loaded())


def collect_less_often() -> None:
    """Make the garbage collector run after many more new objects than by default, and not at exit.

    Imports make few cycles. At exit, Python searches all objects of all modules for cycles, several times.
    """
    gc.set_threshold(_MAX_NEW_OBJECTS)
    atexit.register(_skip_last_collections)


def _skip_last_collections() -> None:
    if "triton" not in sys.modules:  # it reports objects that are not freed
        gc.freeze()


def prepare_process() -> None:
    """Apply all of these settings."""
    collect_less_often()
    keep_memory()
    limit_spinning()
    defer_imports()


def limit_spinning() -> None:
    """Make OpenMP threads sleep after a short wait, unless the user has set the policy. Call it before torch is imported.

    By default they spin for about 5 ms at each barrier. If another process uses the cores, the threads that have work wait
    for those that spin, and small networks become tens of times slower.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
