"""Import torch's compiler only when something is compiled. The import takes a second, and few commands need it.

torchvision imports `torch._dynamo` for object detection, and optimizers import it to exclude methods from tracing. Stand-in
modules provide these few functions. Any other attribute imports the real modules.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_PACKAGE, _UTILS = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """A module that is replaced by the real one when it lacks an attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self.__name__ == _PACKAGE):
            raise AttributeError(name)  # inspect looks them up in all modules; imports of submodules use __path__
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    for known in (_PACKAGE, _UTILS):
        if isinstance(sys.modules.get(known), _StandIn):
            del sys.modules[known]
    return import_module(name)


def defer_compiler() -> None:
    """Install the stand-ins, unless the compiler is already imported."""
    if _PACKAGE in sys.modules:
        return
    package, utils = _StandIn(_PACKAGE), _StandIn(_UTILS)
    package.disable = lambda function=None, *_, **__: function or (lambda other: other)  # type: ignore[attr-defined]
    package.graph_break = lambda *_, **__: None  # type: ignore[attr-defined]
    utils.is_compile_supported = lambda device: _real(_UTILS).is_compile_supported(device)  # type: ignore[attr-defined]
    sys.modules |= {_PACKAGE: package, _UTILS: utils}
