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
    from inat_ft.api.network import Transform, export, load
    from inat_ft.api.split import split
    from inat_ft.api.train import Run, train
    from inat_ft.config import RunConfig
    from inat_ft.data.sources.base import Source
    from inat_ft.data.split import SplitResult
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
    from inat_ft.evaluation.prediction import Prediction
    from inat_ft.exporters import Exporter, ExportResult
    from inat_ft.insights import AuditResult, LearningCurveResult, SuggestResult, audit, learning_curve, suggest
    from inat_ft.metrics.base import Metric
    from inat_ft.models.base import Backbone
    from inat_ft.optim import Optimizer
    from inat_ft.records import RunRecord
    from inat_ft.setup import TrainCallbacks
    from inat_ft.strategies.base import Group, Strategy
    from inat_ft.sweeps import CrossValidation, SweepBackend, SweepResult, TuneResult, sweep, tune
    from inat_ft.tracking import Tracker

__version__ = "0.1.0"

__all__ = [
    "AuditResult", "Backbone", "BusyError", "Comparison", "ConfigError", "CrossValidation", "DataError", "EvaluationResult",
    "ExportResult", "Exporter", "Group", "InatFtError", "LearningCurveResult", "Metric", "Optimizer", "PluginError",
    "Prediction", "PredictionResult", "RecordError", "Run", "RunConfig", "RunRecord", "Source", "SplitResult", "StorageError",
    "Strategy", "SuggestResult", "SweepBackend", "SweepResult", "Tracker", "TrainCallbacks", "Transform", "TuneResult",
    "UsageError", "WeightsError", "audit", "compare", "evaluate", "export", "learning_curve", "load", "predict", "split",
    "suggest", "sweep", "train", "tune",
]  # fmt: skip

_NAMES = {
    "api.comparison": "Comparison compare",
    "api.evaluate": "EvaluationResult PredictionResult evaluate predict",
    "api.network": "Transform export load",
    "api.split": "split",
    "api.train": "Run train",
    "config": "RunConfig",
    "data.sources.base": "Source",
    "data.split": "SplitResult",
    "errors": "BusyError ConfigError DataError InatFtError PluginError RecordError StorageError UsageError WeightsError",
    "evaluation.prediction": "Prediction",
    "exporters": "ExportResult Exporter",
    "insights": "AuditResult LearningCurveResult SuggestResult audit learning_curve suggest",
    "metrics.base": "Metric",
    "models.base": "Backbone",
    "optim": "Optimizer",
    "records": "RunRecord",
    "setup": "TrainCallbacks",
    "strategies.base": "Group Strategy",
    "sweeps": "CrossValidation SweepBackend SweepResult TuneResult sweep tune",
    "tracking": "Tracker",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    if not isinstance(value, type):
        registry = import_module(f"{__name__}.registry")
        for feature in ("arguments", "memory"):
            value = registry.get(registry.FEATURES, feature).load()(value)
        value = import_module(f"{__name__}.hints").for_python(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
