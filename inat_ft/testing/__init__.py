"""Checks for authors of plugins: one per kind of plugin, with small networks and images to run them on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inat_ft.testing.optimizers import check_optimizer
    from inat_ft.testing.strategies import SyntheticData, check_strategy, synthetic_images, tiny_net, write_images

_MODULES = {
    "SyntheticData": "strategies",
    "check_optimizer": "optimizers",
    "check_strategy": "strategies",
    "synthetic_images": "strategies",
    "tiny_net": "strategies",
    "write_images": "strategies",
}

__all__ = ["SyntheticData", "check_optimizer", "check_strategy", "synthetic_images", "tiny_net", "write_images"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
