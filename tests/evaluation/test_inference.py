"""Tests and intervals hold their level: small seeded simulations, and exact enumerations."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from inat_ft.errors import RecordError
from inat_ft.evaluation.compare import compare
from inat_ft.metrics import Contributions, Predictions, get_metric
from inat_ft.metrics.bounds import holm, paired, seed_variance_test
from inat_ft.metrics.builtin import proportion
from inat_ft.records import RunRecord
from tests.evaluation.test_compare import record, right


def paired_accuracy(gained: int, lost: int, number: int) -> Contributions:
    values = np.repeat([1.0, -1.0, 0.0], [gained, lost, number - gained - lost])
    return Contributions(values, -1.0, 1.0)


def paired_difference(a: Predictions, b: Predictions, name: str):
    metric = get_metric(name)
    return paired(metric.contributions(a) - metric.contributions(b))


def predictions(true: np.ndarray, correct: np.ndarray, classes: int, sure: np.ndarray | None = None) -> Predictions:
    predicted = np.where(correct, true, (true + 1) % classes)
    p = None
    if sure is not None:
        p = np.repeat(((1 - sure) / (classes - 1))[:, None], classes, 1)
        p[np.arange(len(true)), predicted] = sure
    return Predictions(tuple(map(str, range(classes))), [], [], true, predicted, p)


@pytest.mark.parametrize("number", [3, 12, 40, 500])
def test_the_paired_interval_agrees_with_mcnemars_exact_test(number: int) -> None:
    for gained in range(min(number, 14) + 1):
        for lost in range(min(number - gained, 14) + 1):
            found = paired(paired_accuracy(gained, lost, number))
            exact = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
            low, high = found.difference.low, found.difference.high
            assert found.p == pytest.approx(exact)
            assert (low > 0 or high < 0) == (exact < 0.05)
            assert low < high and low <= found.difference.value <= high


def test_the_bounds_of_shares_are_clopper_and_pearsons() -> None:
    for hits, number in ((0, 10), (1, 10), (9, 60), (60, 60), (300, 1000)):
        low, high = Contributions(np.repeat([1.0, 0.0], [hits, number - hits]), 0.0, 1.0).interval()
        exact = stats.binomtest(hits, number).proportion_ci(method="exact")
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.003)


@pytest.mark.parametrize("number", [50, 200])
@pytest.mark.parametrize("expected", [1, 2, 5])
def test_equivalence_at_the_margin_is_claimed_in_at_most_five_percent(number: int, expected: int) -> None:
    """By enumeration: the second classifier loses `expected` images on average, and that is the margin."""
    margin = expected / number
    claimed = sum(
        stats.binom.pmf(lost, number, margin) * paired(paired_accuracy(0, lost, number), margin).equivalent
        for lost in range(6 * expected + 6)
    )
    assert claimed <= 0.05


def test_the_interval_of_an_accuracy_covers_it_however_few_errors_there_are() -> None:
    for number in (10, 50, 100, 400):
        found = [proportion(hits, number) for hits in range(number + 1)]
        for truth in (0.5, 0.8, 0.9, 0.97, 0.982, 0.99):
            chances = stats.binom.pmf(np.arange(number + 1), number, truth)
            assert sum(c for c, m in zip(chances, found, strict=True) if m.low <= truth <= m.high) >= 0.935
    wilson = stats.binomtest(800, 1000).proportion_ci(method="wilson")
    assert (proportion(800, 1000).low, proportion(800, 1000).high) == pytest.approx(wilson)


@pytest.mark.parametrize(("classes", "images"), [(60, 1), (100, 1), (100, 2), (60, 3)])
@pytest.mark.slow
def test_few_images_a_class_invent_neither_a_difference_nor_certainty(classes: int, images: int) -> None:
    rng, trials = np.random.default_rng(0), 100
    true = np.repeat(np.arange(classes), images)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
    rejected, covered = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    # population: 70 % right; each class gets the false positives of one other, so that its F1 is its recall
    loss = 0.7 * -np.log(0.9) + 0.3 * -np.log(0.1 / (classes - 1))
    for _ in range(trials):
        sure = np.full(len(true), 0.9)
        a, b = (predictions(true, rng.random(len(true)) < 0.7, classes, sure) for _ in range(2))
        for name in names:
            found = paired_difference(a, b, name)
            assert found.difference.low < found.difference.high
            rejected[name] += found.p is not None and found.p < 0.05
            value = get_metric(name).interval(a)
            covered[name] += value.low <= (loss if name == "log_loss" else 0.7) <= value.high
    assert max(rejected.values()) <= 11 and min(covered.values()) >= 87


def test_rare_large_losses_that_are_not_in_the_sample_are_allowed_for() -> None:
    rng, classes, covered = np.random.default_rng(0), 10, 0
    loss = 0.99 * -np.log(0.9) + 0.01 * -np.log(0.1 / 9)
    for _ in range(100):
        p = predictions(np.arange(20) % 10, rng.random(20) < 0.99, classes, np.full(20, 0.9))
        low, high = get_metric("log_loss").contributions(p).interval()
        covered += low <= loss <= high
    assert covered >= 93


def test_a_rare_class_that_is_all_right_leaves_a_macro_metric_open() -> None:
    true = np.repeat([0, 1], [1000, 2])
    p = Predictions(("a", "b"), [], [], true, true)
    for name in ("balanced_accuracy", "macro_f1", "macro_precision", "macro_recall"):
        found = get_metric(name).interval(p)
        assert found.value == 1 and found.high == 1
        assert found.low == pytest.approx((1 + 0.025**0.5) / 2, abs=0.002)  # the rare class: recall**2 = 0.025


def test_a_constant_predictor_has_an_interval() -> None:
    true = np.arange(40) % 2
    p = Predictions(("a", "b"), [], [], true, np.zeros(40, int))
    found = get_metric("balanced_accuracy").interval(p)
    assert found.low < 0.4 and found.high > 0.6


def test_the_same_difference_on_all_images_gives_no_verdict(tmp_path: Path) -> None:
    true, sure = np.arange(60) % 3, np.full(60, 0.6)
    a, b = (predictions(true, np.ones(60, bool), 3, sure + more) for more in (0.0, 0.2))
    found = paired(get_metric("log_loss").contributions(a) - get_metric("log_loss").contributions(b), 0.9)
    assert found.p is None and found.equivalent is False and found.difference.low < found.difference.high

    lines = [f"{n}.jpg,c{n % 3},c{n % 3}" for n in range(60)]
    for name in ("A", "B"):
        (tmp_path / f"{name}.csv").write_text("path,true,predicted\n" + "\n".join(lines[:-1]) + "\n")
        content = {"name": name, "test_accuracy": 1.0, "predictions": {"test": f"{name}.csv"}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    result = compare([tmp_path / "A.json", tmp_path / "B.json"], "balanced_accuracy", margin=0.5)
    assert result.summary.startswith("No conclusion: all test images give the same difference in balanced accuracy")
    assert not result.pairs[0].is_significant and not result.pairs[0].equivalent


def test_equal_figures_by_another_path_do_not_differ() -> None:
    """Rounding errors are no differences: the classes are equally good, in another order."""
    true = np.repeat(np.arange(7), 11)
    correct = np.tile(np.arange(11) < 8, 7)
    a, b = predictions(true, correct, 7), predictions(true, correct.copy(), 7)
    for name in ("balanced_accuracy", "macro_f1"):
        found = paired_difference(a, b, name)
        assert found.difference.value == 0 and found.p in (None, 1.0)


@pytest.mark.parametrize(("seeds", "spreads"), [((5, 2), (0.003, 0.05)), ((3, 3), (0.0, 0.05)), ((2, 2), (0.03, 0.03))])
def test_of_equal_configurations_few_are_called_different(seeds: tuple[int, int], spreads: tuple[float, float]) -> None:
    rng, images, trials, false = np.random.default_rng(0), 1000, 200, 0
    for _ in range(trials):
        sides = []
        for number, spread in zip(seeds, spreads, strict=True):
            skill = 0.7 + spread * rng.standard_normal((number, 1))
            correct = (rng.random((number, images)) < skill).astype(float)
            sides.append([Contributions(row, 0.0, 1.0) for row in correct])
        found = seed_variance_test(sides)
        assert (found.difference.low > 0 or found.difference.high < 0) == (found.p < 0.05)
        false += found.p < 0.05
    assert false / trials <= 0.065


def test_a_group_is_not_tested_against_a_single_seed(tmp_path: Path) -> None:
    for seed in range(3):
        record(tmp_path, f"a{seed}", right(0.9, seed), config={"x": 1, "seed": seed}, seed=seed)
    record(tmp_path, "single", right(0.5, 9), config={"x": 2, "seed": 0}, seed=0)
    found = compare([tmp_path], group=True, margin=0.5)
    (pair,) = found.pairs
    assert pair.p is None and pair.p_holm is None and pair.difference is None and not pair.equivalent
    assert "single has a single seed" in found.summary and "--seed" in found.summary

    for seed in range(2):
        record(tmp_path, f"b{seed}", right(0.5, seed + 20), config={"x": 3, "seed": seed}, seed=seed)
    found = compare([tmp_path], group=True)
    assert "is better than b0 (2 seeds)" in found.summary
    assert "cannot be compared with single, which has a single seed" in found.summary


def test_intervals_of_several_pairs_agree_with_the_corrected_tests() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ps = (rng.random(6) * 0.05).tolist()
        for p, corrected, level in zip(ps, *holm(ps), strict=True):
            assert (corrected < 0.05) == (p < level)


def test_a_misnamed_claim_and_a_bare_one_get_a_hint(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    (tmp_path / "x.json").write_text('{"name": "x", "accuracy": 41.0}')
    (tmp_path / "y.json").write_text('{"name": "y", "test_accuracy": 0.41}')
    with pytest.raises(RecordError, match=r"unknown key 'accuracy': did you mean 'test_accuracy' \(0 to 1\)\?"):
        compare([a, tmp_path / "x.json"])
    found = compare([a, tmp_path / "y.json"])
    assert (
        found.summary.startswith("No conclusion: the number of test images of y is unknown")
        and "inat-ft record new" in found.summary
    )


def test_names_do_not_decide_the_conclusion(tmp_path: Path) -> None:
    """A classifier may be called anything."""
    a = record(tmp_path, "means nothing", right(0.9))
    b = record(tmp_path, "B, which means nothing", right(0.5))
    content = json.loads((b / "record.json").read_text())
    (b / "record.json").write_text(json.dumps({**content, "test_accuracy": 0.7}))
    assert isinstance(RunRecord.model_validate(content), RunRecord)
    assert "is better than" in compare([a, b]).summary
