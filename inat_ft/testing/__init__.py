"""Conformance checks for plugin authors, one for each group, and small networks and images to test with."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inat_ft.testing.backbones import check_backbone
    from inat_ft.testing.exporters import check_exporter
    from inat_ft.testing.metrics import check_metric
    from inat_ft.testing.optimizers import check_optimizer
    from inat_ft.testing.sources import check_source
    from inat_ft.testing.strategies import SyntheticData, check_strategy, synthetic_images, tiny_net, write_images
    from inat_ft.testing.sweep_backends import check_sweep_backend
    from inat_ft.testing.trackers import check_tracker

_MODULES = {
    "SyntheticData": "strategies",
    "check_backbone": "backbones",
    "check_exporter": "exporters",
    "check_metric": "metrics",
    "check_optimizer": "optimizers",
    "check_source": "sources",
    "check_strategy": "strategies",
    "check_sweep_backend": "sweep_backends",
    "check_tracker": "trackers",
    "synthetic_images": "strategies",
    "tiny_net": "strategies",
    "write_images": "strategies",
}

__all__ = [
    "SyntheticData",
    "check_backbone",
    "check_exporter",
    "check_metric",
    "check_optimizer",
    "check_source",
    "check_strategy",
    "check_sweep_backend",
    "check_tracker",
    "synthetic_images",
    "tiny_net",
    "write_images",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
