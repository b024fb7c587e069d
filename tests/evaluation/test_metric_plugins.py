"""Metrics that other packages bring: intervals from the value alone."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from inat_ft.metrics import MeanMetric, Metric, Predictions, get_metric, installed_metrics
from inat_ft.metrics.bounds import paired
from inat_ft.testing import check_metric
from tests.integration.conftest import ROOT

NAMES = ("a", "b", "c", "d")


class Kappa(Metric):
    label = "Cohen's kappa"
    bounds = (-1.0, 1.0)

    def value(self, predictions: Predictions) -> float:
        chance = sum(float((predictions.true == c).mean() * (predictions.predicted == c).mean()) for c in range(4))
        return (float(predictions.correct.mean()) - chance) / (1 - chance) if chance < 1 else 0.0


class Auc(Metric):
    needs_probabilities = True
    bounds = (0.0, 1.0)

    def value(self, predictions: Predictions) -> float:
        positive = predictions.true == 0
        if positive.all() or not positive.any():
            return 0.5
        return float(roc_auc_score(positive, predictions.require_probabilities()[:, 0]))


def drawn(rng: np.random.Generator, number: int, accuracy: float) -> Predictions:
    true = rng.integers(0, 4, number)
    wrong = (true + rng.integers(1, 4, number)) % 4
    return Predictions(NAMES, (), (), true, np.where(rng.random(number) < accuracy, true, wrong))


@pytest.mark.parametrize("metric", installed_metrics()[0], ids=lambda metric: metric.name)
def test_the_builtin_metrics_keep_the_contract(metric: Metric) -> None:
    if metric.name == "ece":
        pytest.skip(
            "its population value differs from that of a calibrated sample by its bias, which its own test covers"
        )
    check_metric(metric)


def test_the_example_keeps_the_contract_and_is_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugins" / "metric"))
    from kappa import Kappa as Example

    check_metric(Example())
    p = drawn(np.random.default_rng(0), 200, 0.6)
    assert Example().value(p) == pytest.approx(cohen_kappa_score(p.true, p.predicted))


@pytest.mark.slow
def test_a_metric_of_probabilities_keeps_the_contract() -> None:
    check_metric(Auc(), images=60)


@pytest.mark.parametrize("accuracy", [0.25, 0.7, 0.97])
@pytest.mark.slow
def test_kappa_is_covered_and_equal_classifiers_are_seldom_called_different(accuracy: float) -> None:
    """Kappa of uniform classes and errors is (accuracy - 1/4) / (3/4); it is 0 for a classifier that guesses."""
    rng, trials, covered, rejected = np.random.default_rng(0), 200, 0, 0
    for _ in range(trials):
        a, b = drawn(rng, 120, accuracy), drawn(rng, 120, accuracy)
        b = Predictions(NAMES, (), (), a.true, np.where(b.correct, a.true, (a.true + 1 + b.predicted % 3) % 4))
        found = Kappa().interval(a)
        covered += found.low <= (accuracy - 0.25) / 0.75 <= found.high
        p = paired(Kappa().contributions(a) - Kappa().contributions(b)).p
        rejected += p is not None and p < 0.05
    assert covered >= 0.92 * trials and rejected <= 0.075 * trials


def test_perfect_predictions_have_an_interval() -> None:
    true = np.arange(60) % 4
    found = Kappa().interval(Predictions(NAMES, (), (), true, true))
    assert found.value == 1.0 and 0.85 < found.low < 0.99 and found.high == 1.0


def test_the_check_refuses_what_breaks_the_contract() -> None:
    class Ordered(Kappa):
        def value(self, predictions):
            return float(predictions.correct[0])

    class Reversed(Kappa):
        higher_is_better = False

    class Narrow(MeanMetric):
        bounds = (0.0, 0.5)

        def per_image(self, predictions):
            return predictions.correct.astype(float)

    for metric, message in ((Ordered(), "order"), (Reversed(), "higher_is_better"), (Narrow(), "bounds")):
        with pytest.raises(AssertionError, match=message):
            check_metric(metric)


def test_a_jackknife_of_a_mean_is_the_mean() -> None:
    class Again(Metric):
        bounds = (0.0, 1.0)

        def value(self, predictions):
            return float(predictions.correct.mean())

    p = drawn(np.random.default_rng(1), 80, 0.8)
    again, known = Again().contributions(p), get_metric("accuracy").contributions(p)
    np.testing.assert_allclose(again.values, known.values, atol=1e-9)
    assert again.interval() == pytest.approx(known.interval(), abs=0.002)


def test_a_jackknife_of_one_image_has_one_contribution_and_nan_is_an_error() -> None:
    p = drawn(np.random.default_rng(1), 1, 1.0)
    found = Kappa().contributions(p)
    assert found.values.tolist() == [Kappa().value(p)] and found.least <= found.values[0] <= found.most

    class Undefined(Kappa):
        def value(self, predictions: Predictions) -> float:
            return float("nan")

    with pytest.raises(ValueError, match=r"value\(\) returned nan"):
        Undefined().contributions(p)
