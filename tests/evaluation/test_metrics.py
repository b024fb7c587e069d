import math

import numpy as np
import pytest
from inat_ft_conformal.temperature import fit_temperature, temperature_scale
from inat_ft_metrics.macro import _binomial, _poisson, _random_class_f1_bias
from inat_ft_metrics.probabilities import Ece
from scipy.optimize import brentq
from scipy.special import softmax
from scipy.stats import binom, poisson
from sklearn import metrics as sk

from inat_ft.errors import RecordError
from inat_ft.evaluation.predictions import (
    Predictions,
    confusion,
    from_probabilities,
    read_predictions,
    score,
    write_predictions,
)
from inat_ft.metrics import bounds as significance
from inat_ft.metrics import get_metric
from inat_ft.metrics.roots import find_root

CLASSES = ("a", "b", "c", "d")


def invented(seed: int = 0, number: int = 300, skill: float = 1.5, classes=CLASSES) -> Predictions:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, len(classes), number)
    logits = rng.normal(0, 1, (number, len(classes)))
    logits[np.arange(number), true] += skill
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [f"{n:04d}.jpg" for n in range(number)]
    return from_probabilities(classes, names, [f"{n:064x}" for n in range(number)], true, p)


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_is_scikit_learns(seed: int) -> None:
    p = invented(seed)
    found, per_class, _ = score(p)
    true, predicted, shares = p.true, p.predicted, p.probabilities
    wanted = {
        "accuracy": sk.accuracy_score(true, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(true, predicted),
        "top3_accuracy": sk.top_k_accuracy_score(true, shares, k=3),
        "macro_precision": sk.precision_score(true, predicted, average="macro", zero_division=0),
        "macro_recall": sk.recall_score(true, predicted, average="macro"),
        "macro_f1": sk.f1_score(true, predicted, average="macro"),
        "log_loss": sk.log_loss(true, shares),
    }
    assert {name: found[name].value for name in wanted} == pytest.approx(wanted, rel=1e-5)
    assert found["brier"].value == pytest.approx(((shares - np.eye(4)[true]) ** 2).sum(1).mean(), rel=1e-5)
    columns = sk.precision_recall_fscore_support(true, predicted)
    for row, precision, recall, f1, support in zip(per_class, *columns, strict=True):
        got = (row.precision.value, row.recall.value, row.f1.value, row.num_images)
        assert got == pytest.approx((precision, recall, f1, support))
    assert (confusion(p) == sk.confusion_matrix(true, predicted)).all()
    assert all(metric.low <= metric.value <= metric.high for name, metric in found.items() if name != "ece")


def test_a_class_that_is_never_predicted_has_precision_zero() -> None:
    p = Predictions(("a", "b"), ["x", "y"], ["", ""], np.array([0, 1]), np.array([0, 0]))
    _, (a, b), _ = score(p)
    assert (a.precision.value, b.precision.value, b.f1.value) == (0.5, 0.0, 0.0)


def test_calibration_error_of_a_calibrated_and_an_overconfident_network() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = (p.cumsum(1) > rng.random((20_000, 1))).argmax(1)
    names = [""] * 20_000
    calibrated = from_probabilities(CLASSES, names, names, true, p)
    sure = temperature_scale(calibrated, 0.3)
    assert Ece().value(calibrated) < 0.02 and Ece().value(sure) > 0.1
    assert fit_temperature(sure) == pytest.approx(1 / 0.3, rel=0.05)
    assert (temperature_scale(sure, 1 / 0.3).probabilities == pytest.approx(p, abs=1e-3)) and (
        sure.predicted == calibrated.predicted
    ).all()


@pytest.mark.parametrize("temperature", [1.0, 0.8, 0.5])
def test_the_interval_of_the_calibration_error_covers_it_in_spite_of_its_bias(temperature: float) -> None:
    ece = Ece()
    ece.num_bootstrap = 400
    rng, number, trials, found = np.random.default_rng(0), 500, 60, 0
    for _ in range(trials):
        logits = rng.normal(size=(number, 10)) + 2 * np.eye(10)[rng.integers(0, 10, number)]
        truth, claimed = softmax(logits, 1), softmax(logits / temperature, 1)
        labels = (truth.cumsum(1) > rng.random((number, 1))).argmax(1)
        names = [str(place) for place in range(number)]
        p = from_probabilities([str(n) for n in range(10)], names, [""] * number, labels, claimed)
        chance = truth[np.arange(number), p.predicted]
        bin_order = claimed.max(1).argsort(kind="stable").argsort()
        gaps = np.bincount(bin_order * 15 // number, claimed.max(1) - chance)
        value = ece.interval(p)
        assert value.low <= value.value <= value.high
        found += value.low <= np.abs(gaps).sum() / number <= value.high
    assert found / trials >= 0.85


def test_a_share_without_errors_has_an_interval_all_the_same() -> None:
    p = invented(0, 40)
    perfect = Predictions(p.classes, p.paths, p.hashes, p.true, p.true)
    found, per_class, _ = score(perfect)
    assert found["macro_f1"].low < 0.95 and found["balanced_accuracy"].high == 1.0
    assert all(row.recall.low < 1 for row in per_class)


class TestSignificance:
    def test_of_two_equal_classifiers_few_are_called_different(self) -> None:
        false, contributions = 0, get_metric("accuracy").contributions
        for seed in range(300):
            a, b = invented(seed, 200), invented(seed + 1000, 200)
            false += significance.paired(contributions(a) - contributions(b)).p < 0.05
        assert false / 300 < 0.07

    def test_the_paired_interval_is_narrower_when_errors_are_shared(self) -> None:
        contributions = get_metric("accuracy").contributions
        a = invented(0, 500)
        p = a.probabilities.copy()
        p[:10] = np.roll(p[:10], 1, axis=1)
        b = from_probabilities(CLASSES, a.paths, a.hashes, a.true, p)
        paired = significance.paired(contributions(a) - contributions(b)).difference
        unpaired = significance.unpaired_difference(a.correct.mean(), 500, b.correct.mean(), 500)
        assert paired.value == pytest.approx(unpaired.value)
        assert paired.high - paired.low < (unpaired.high - unpaired.low) / 2
        difference = contributions(a) - contributions(b)
        assert (
            significance.paired(difference, 0.06).equivalent and not significance.paired(difference, 0.001).equivalent
        )

    def test_newcombes_interval_is_that_of_his_paper(self) -> None:
        """Newcombe 1998, table II (a): 56/70 - 48/80, method 10."""
        found = significance.unpaired_difference(56 / 70, 70, 48 / 80, 80)
        assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)

    def test_holm(self) -> None:
        assert significance.holm([0.01, 0.04, 0.03])[0] == pytest.approx([0.03, 0.06, 0.06])
        assert significance.holm([0.6, 0.7])[0] == [1.0, 1.0]


def flipped(p: Predictions, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(p)) < 0.1
    return np.where(wrong, (p.predicted + 1) % 4, p.predicted)


class TestPredictionsFile:
    def test_it_comes_back(self, tmp_path) -> None:
        p = invented()
        write_predictions(tmp_path / "p.csv", p)
        again = read_predictions(tmp_path / "p.csv")
        assert again.classes == p.classes and again.hashes == list(p.hashes)
        assert (again.true == p.true).all() and (again.predicted == p.predicted).all()
        assert again.probabilities == pytest.approx(p.probabilities, abs=1e-8)

    def test_the_least_that_another_program_writes(self, tmp_path) -> None:
        (tmp_path / "p.csv").write_text("path,true,predicted\na.jpg,cat,dog\nb.jpg,dog,dog\n")
        p = read_predictions(tmp_path / "p.csv")
        assert p.classes == ("cat", "dog") and p.correct.tolist() == [False, True] and p.probabilities is None

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("path,true\na,b\n", "lacks the columns predicted"),
            ("path,true,predicted\n", "has no predictions"),
            ("path,true,predicted\na,b\n", "line 2: 2 values for 3 columns"),
            ("path,true,predicted,p_x,p_y\na,x,x,0.5,0.9\n", "line 2: the probabilities sum to 1.4"),
            ("path,true,predicted,p_x,p_y\na,x,z,0.5,0.5\n", "line 2: class 'z' has no column p_z"),
            ("path,true,predicted,p_x,p_y\na,x,x,0.5,much\n", "a probability is not a number"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, text: str, message: str) -> None:
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(RecordError, match=message):
            read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(("number", "recall", "false"), [(3.0, 0.7, 1.0), (6.0, 0.4, 2.0)])
def test_the_bias_of_f1_of_a_random_class_is_the_simulated_one(number: float, recall: float, false: float) -> None:
    rng = np.random.default_rng(0)
    hits = rng.poisson(number * recall, 400_000)
    errors = rng.poisson(number * (1 - recall) + false, 400_000)
    images = 2 * hits + errors
    f1 = 2 * hits[images > 0] / images[images > 0]
    expected = 2 * number * recall / (number * (1 + recall) + false)
    assert _random_class_f1_bias(number, recall, false) == pytest.approx(f1.mean() - expected, abs=2e-3)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (lambda x: x**3 - 2, 0.0, 9.0),
        (lambda x: math.expm1(x) - 1e-9, -1.0, 40.0),
        (lambda x: 1 / (1 - x) - 1 / (1 + 3 * x), (1 - 1e-13) / -3, 1 - 1e-13),  # poles at both ends
        (lambda x: (x > 0.3) - 0.5, 0.0, 1.0),
        (lambda x: x, 0.0, 1.0),
        (lambda x: x - 1, 0.0, 1.0),
        (lambda x: math.atan(1e6 * (x - 0.7)), 0.0, 1.0),
    ],
)
def test_zeros_are_those_of_scipy(function, low: float, high: float, sign: int) -> None:
    calls: list[float] = []

    def counted(x: float) -> float:
        calls.append(x)
        return sign * function(x)

    expected = brentq(function, low, high, xtol=1e-13)
    assert find_root(counted, low, high, 1e-13) == pytest.approx(expected, abs=2e-13)
    assert len(calls) < 70 and all(low <= x <= high for x in calls)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mean", [0.0, 0.7, 30.0, 2000.0])
def test_probabilities_of_counts_are_those_of_scipy(share: float, mean: float) -> None:
    counts = np.arange(int(mean + 10 * mean**0.5) + 11)
    np.testing.assert_allclose(_poisson(counts, mean), poisson.pmf(counts, mean), rtol=1e-9, atol=1e-300)
    for number in (1, 2, 30):
        expected = binom.pmf(np.arange(number + 1), number, share)
        np.testing.assert_allclose(_binomial(number, share), expected, rtol=1e-9, atol=1e-300)
