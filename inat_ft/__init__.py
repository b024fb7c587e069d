"""Fine-tune a pretrained image classifier and compare strategies with significance tests.

    import inat_ft

    inat_ft.split("photos", out="splits/photos.csv")
    run = inat_ft.train(split="splits/photos.csv", mode="head", epochs=5)
    print(inat_ft.evaluate(run))

Names are imported when they are first used, so that `import inat_ft` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inat_ft.api.comparison import Comparison, compare
    from inat_ft.api.evaluate import EvaluationResult, PredictionResult, evaluate, predict
    from inat_ft.api.model import ExportResult, Transform, export, load
    from inat_ft.api.run import Run
    from inat_ft.api.split import SplitResult, split
    from inat_ft.api.sweep import SweepResult, sweep
    from inat_ft.api.train import train
    from inat_ft.config import RunConfig
    from inat_ft.data.sources.base import Source
    from inat_ft.errors import (
        BusyError,
        ConfigError,
        DataError,
        InatFtError,
        PluginError,
        RecordError,
        StorageError,
        UsageError,
        WeightsError,
    )
    from inat_ft.evaluation.inference import Prediction
    from inat_ft.exporters.base import Exporter
    from inat_ft.metrics.base import Metric
    from inat_ft.models.base import Backbone
    from inat_ft.optim.base import Optimizer
    from inat_ft.records import RunRecord
    from inat_ft.setup import TrainCallbacks
    from inat_ft.strategies.base import Group, Strategy
    from inat_ft.sweeps.base import SweepBackend
    from inat_ft.tracking.base import Tracker

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "BusyError",
    "Comparison",
    "ConfigError",
    "DataError",
    "EvaluationResult",
    "ExportResult",
    "Exporter",
    "Group",
    "InatFtError",
    "Metric",
    "Optimizer",
    "PluginError",
    "Prediction",
    "PredictionResult",
    "RecordError",
    "Run",
    "RunConfig",
    "RunRecord",
    "Source",
    "SplitResult",
    "StorageError",
    "Strategy",
    "SweepBackend",
    "SweepResult",
    "Tracker",
    "TrainCallbacks",
    "Transform",
    "UsageError",
    "WeightsError",
    "compare",
    "evaluate",
    "export",
    "load",
    "predict",
    "split",
    "sweep",
    "train",
]

_NAMES = {
    "api.comparison": ("Comparison", "compare"),
    "api.evaluate": ("EvaluationResult", "PredictionResult", "evaluate", "predict"),
    "api.model": ("ExportResult", "Transform", "export", "load"),
    "api.run": ("Run",),
    "api.split": ("SplitResult", "split"),
    "api.sweep": ("SweepResult", "sweep"),
    "api.train": ("train",),
    "config": ("RunConfig",),
    "data.sources.base": ("Source",),
    "errors": (
        "BusyError",
        "ConfigError",
        "DataError",
        "InatFtError",
        "PluginError",
        "RecordError",
        "StorageError",
        "UsageError",
        "WeightsError",
    ),
    "evaluation.inference": ("Prediction",),
    "exporters.base": ("Exporter",),
    "metrics.base": ("Metric",),
    "models.base": ("Backbone",),
    "optim.base": ("Optimizer",),
    "records": ("RunRecord",),
    "setup": ("TrainCallbacks",),
    "strategies.base": ("Group", "Strategy"),
    "sweeps.base": ("SweepBackend",),
    "tracking.base": ("Tracker",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
