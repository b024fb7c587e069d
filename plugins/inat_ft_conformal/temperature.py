"""Temperature scaling, fitted on validation predictions, and metrics after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from inat_ft.evaluation.predictions import read_predictions
from inat_ft.metrics.base import Predictions, get_metric
from inat_ft.metrics.builtin import LogLoss
from inat_ft.records import MetricValue, RunRecord, predictions_file

_EPS = 1e-15


def validation_predictions(record: RunRecord, directory: Path, image_size: int | None, tta: str) -> Predictions | None:
    """Return the validation predictions of a run, None if they have no probabilities or were made in another way."""
    file, preprocess = predictions_file(record, directory, "val"), record.preprocess
    size = (record.val and record.val.image_size) or preprocess.get("eval_image_size") or preprocess.get("image_size")
    same = size == image_size and (record.val.tta if record.val else "none") == tta
    if file is None or not file.is_file() or not same:
        return None
    validation = read_predictions(file)
    return None if validation.probabilities is None else validation


def calibrated_metrics(
    predictions: Predictions, record: RunRecord, directory: Path, image_size: int, tta: str
) -> dict[str, MetricValue]:
    """Return metrics after temperature scaling, fitted on validation predictions made in the same way; else nothing."""
    validation = validation_predictions(record, directory, image_size, tta)
    if validation is None:
        return {}
    temperature = fit_temperature(validation)
    scaled = temperature_scale(predictions, temperature)
    return {
        "temperature": MetricValue(value=temperature, method="fitted on validation"),
        "ece_calibrated": MetricValue(value=get_metric("ece").value(scaled)),
        "log_loss_calibrated": MetricValue(value=LogLoss().value(scaled)),
    }


def fit_temperature(p: Predictions) -> float:
    """Return the temperature that minimizes the log loss of validation predictions (Guo et al. 2017, arXiv 1706.04599)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return LogLoss().value(temperature_scale(p, float(np.exp(log_temperature))))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def temperature_scale(p: Predictions, temperature: float) -> Predictions:
    """Return the predictions with log probabilities divided by a temperature; the predicted classes stay the same."""
    from scipy.special import softmax

    return replace(p, probabilities=softmax(np.log(np.clip(p.require_probabilities(), _EPS, 1)) / temperature, 1))
