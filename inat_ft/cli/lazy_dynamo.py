"""torch's compiler loaded once something is compiled: importing it takes a second, and most commands compile nothing.

torchvision imports `torch._dynamo` for one function, which detection alone calls, and every optimiser imports it to tell it
which of its methods not to trace. Stand-ins answer that much; whoever asks them for anything else gets the real modules.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_PACKAGE, _UTILS = "torch._dynamo", "torch._dynamo.utils"


class _StandIn(ModuleType):
    """A module that gives way to the real one when asked for something that it does not know."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and not (name == "__path__" and self.__name__ == _PACKAGE):
            raise AttributeError(name)  # such as inspect asks every module for; a submodule is looked for in __path__
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    for known in (_PACKAGE, _UTILS):
        if isinstance(sys.modules.get(known), _StandIn):
            del sys.modules[known]
    return import_module(name)


def defer_compiler() -> None:
    """Put stand-ins for the compiler's modules where nobody has imported them yet."""
    if _PACKAGE in sys.modules:
        return
    package, utils = _StandIn(_PACKAGE), _StandIn(_UTILS)
    package.disable = lambda function=None, *_, **__: function or (lambda other: other)  # type: ignore[attr-defined]
    package.graph_break = lambda *_, **__: None  # type: ignore[attr-defined]
    utils.is_compile_supported = lambda device: _real(_UTILS).is_compile_supported(device)  # type: ignore[attr-defined]
    sys.modules |= {_PACKAGE: package, _UTILS: utils}
