"""The conclusion of a comparison, sentence by sentence, and what records alone show."""

from pathlib import Path

import pytest

from inat_ft.evaluation.candidates import Candidate, Reason
from inat_ft.evaluation.pairwise import PairwiseResult, _different_records, _number, _unpaired, summarize
from inat_ft.metrics import get_metric
from inat_ft.metrics.bounds import ALPHA, Difference
from inat_ft.records import MetricValue, RunRecord

ACCURACY, LOSS = get_metric("accuracy"), get_metric("log_loss")


def candidate(name: str, score: float | None = 0.5, number: int | None = 100, **record: object) -> Candidate:
    value = None if score is None else MetricValue(value=score)
    return Candidate(name, [RunRecord(name=name, **record)], [Path(name)], score=value, num_test=number)


def pair(value: float, low: float, high: float, p: float | None = None, second: str = "B", **more) -> PairwiseResult:
    return PairwiseResult("A", second, Difference(value, low, high, "exact"), p, p, **more)


def conclusion(*pairs: PairwiseResult, metric=ACCURACY, margin: float | None = None) -> str:
    return summarize([candidate("A"), candidate("B")], pairs, metric, margin)


def test_significant_means_below_alpha() -> None:
    assert pair(0.1, 0, 1, ALPHA - 1e-9).is_significant
    assert not pair(0.1, 0, 1, ALPHA).is_significant
    assert not PairwiseResult("A", "B").is_significant


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        (ACCURACY, 0.1, "A is better than B by 10.00 points in accuracy (95% interval 5.00 to 15.00, p = 0.01)."),
        (ACCURACY, -0.1, "B is better than A by 10.00 points in accuracy (95% interval 5.00 to 15.00, p = 0.01)."),
        (LOSS, 0.1, "B is better than A by 0.1000 nats in log loss (95% interval 0.0500 to 0.1500, p = 0.01)."),
        (LOSS, -0.1, "A is better than B by 0.1000 nats in log loss (95% interval 0.0500 to 0.1500, p = 0.01)."),
    ],
)
def test_who_is_better_and_by_how_much(metric, value: float, expected: str) -> None:
    low, high = sorted((value - 0.05, value + 0.05))
    said = conclusion(pair(value, low, high, 0.01), metric=metric)
    assert said.replace(" nats", "") == expected.replace(" nats", "")


def test_an_equal_score_names_the_first_with_its_own_interval() -> None:
    for metric, interval in ((ACCURACY, "-2.00 to 1.00"), (LOSS, "-0.0200 to 0.0100")):
        said = conclusion(pair(0.0, -0.02, 0.01, 0.8), metric=metric)
        assert said.startswith("A and B are not significantly different") and f"95% interval {interval}," in said
        assert "they differ by 0.00" in said and "equivalent" not in said


def test_equivalence_is_said_only_with_a_margin() -> None:
    differ = "they differ by 1.00 points in accuracy (95% interval -1.00 to 3.00, p = 0.5)."
    said = conclusion(pair(0.01, -0.01, 0.03, 0.5, equivalent=True), margin=0.05)
    assert said == f"A and B are equivalent within 5.00 points: {differ}"
    said = conclusion(pair(0.01, -0.01, 0.03, 0.5, equivalent=False), margin=0.02)
    assert said.endswith(f"{differ} They are not shown to be equivalent within 2.00 points either.")
    said = conclusion(pair(0.01, -0.01, 0.03, 0.5))
    assert said == f"A and B are not significantly different on these test images: {differ}"
    said = conclusion(pair(0.01, 0.005, 0.02, 0.01, equivalent=True, n_first_only=1200, n_second_only=3), margin=0.05)
    assert said.endswith(
        "The difference is within the margin of 5.00 points. Only A is correct on 1,200 images, only B on 3."
    )


@pytest.mark.parametrize(
    ("low", "high", "chance"),
    [
        (-0.1, 0.3, "does not exclude"),
        (0.0, 0.2, "does not exclude"),
        (-0.1, 0.0, "does not exclude"),
        (0.01, 0.2, "excludes"),
    ],
)
def test_claims_without_predictions_are_not_verified(low: float, high: float, chance: str) -> None:
    said = conclusion(pair(0.1, low, high, reason=Reason.NO_PREDICTIONS, obstacle="predictions of B are missing"))
    assert said.startswith("As reported, A is ahead of B by 10.00 points in accuracy")
    assert f"which {chance} 0)" in said and "This cannot be verified: predictions of B are missing." in said


def test_no_conclusion_without_scores_or_with_leaks_or_on_different_images() -> None:
    pairs = [pair(0.1, 0.05, 0.2, 0.01)]
    assert "no classifier has been evaluated" in summarize([candidate("A", None)], pairs, ACCURACY, None)
    leaking = candidate("B")
    leaking.leaks = True
    assert "trained on images that it is tested on" in summarize([candidate("A"), leaking], pairs, ACCURACY, None)
    said = conclusion(pair(0.1, 0.05, 0.2, reason=Reason.DIFFERENT_IMAGES, obstacle="other images"))
    assert said.startswith("No conclusion: other images. The difference of 10.00 points") and "record new" not in said
    said = conclusion(pair(0.1, 0.05, 0.2, reason=Reason.NO_VARIATION, obstacle="no variation"))
    assert said == "No conclusion: no variation."
    said = conclusion(PairwiseResult("A", "B", reason=Reason.UNKNOWN_SIZE, obstacle="unknown"))
    assert said.startswith("No conclusion: unknown. To test it")
    said = conclusion(PairwiseResult("A", "B", reason=Reason.NO_SCORE, obstacle="the accuracy of B is unknown"))
    assert said == "No conclusion: the accuracy of B is unknown."  # a note names the command that evaluates B


def test_many_classifiers() -> None:
    beaten, level = pair(0.1, 0.05, 0.2, 0.01), pair(0.01, -0.1, 0.2, 0.6, second="C", equivalent=True)
    holm = "Tests are Holm-corrected for all pairs."
    assert conclusion(beaten, level) == (
        "A has the best accuracy. It is better than B. It is not significantly different from C (p = 0.6) on these test "
        f"images. {holm}"
    )
    assert "It is equivalent to C within 5.00 points." in conclusion(beaten, level, margin=0.05)
    single = [PairwiseResult("A", name, reason=Reason.SINGLE_SEED, obstacle="x") for name in ("D", "E")]
    said = conclusion(beaten, *single, PairwiseResult("A", "F", reason=Reason.NO_PREDICTIONS))
    assert said == (
        "A has the best accuracy of those that can be checked. It is better than B. It cannot be compared with D and E, "
        f"which have a single seed. It cannot be compared with F, which has no predictions. {holm}"
    )
    one = PairwiseResult("A", "D", reason=Reason.DIFFERENT_IMAGES)
    assert "with D, which was tested on different images" in conclusion(beaten, one)
    assert conclusion(*single) == "No conclusion: x."


def test_what_records_alone_show() -> None:
    def record(classes: list[str], fingerprint: str = "") -> RunRecord:
        test = {"subset": "test", "num_images": 1, "fingerprint": fingerprint, "metrics": {}}
        return RunRecord.model_validate({"name": "n", "classes": classes, "test": test})

    assert _different_records(record([]), record(["a"])) == ""
    assert _different_records(record(["b", "a"]), record(["a", "b"])) == ""
    assert _different_records(record(["a"]), record(["b"])) == "they have different classes (a, b)"
    assert _different_records(record([], "1"), record([], "1")) == _different_records(record([], "1"), record([])) == ""
    assert "their fingerprints differ" in _different_records(record([], "1"), record([], "2"))


def test_two_scores_without_a_test() -> None:
    found = _unpaired(candidate("A"), candidate("B", None), ACCURACY, "")
    assert (found.reason, found.obstacle, found.difference) == (Reason.NO_SCORE, "the accuracy of B is unknown", None)
    found = _unpaired(candidate("A", None), candidate("B"), ACCURACY, "")
    assert found.obstacle == "the accuracy of A is unknown"
    found = _unpaired(candidate("A", 0.6), candidate("B", 0.5), ACCURACY, "")
    assert (found.reason, found.obstacle) == (Reason.NO_PREDICTIONS, "predictions of A and B are missing")
    assert found.difference.value == pytest.approx(0.1) and found.difference.low < 0.1 < found.difference.high
    found = _unpaired(candidate("A", 0.6), candidate("B", 0.5, None), ACCURACY, "")
    assert (found.reason, found.difference) == (Reason.UNKNOWN_SIZE, None)
    assert "test images of B is unknown" in found.obstacle
    found = _unpaired(candidate("A"), candidate("B"), ACCURACY, "other images")
    assert (found.reason, found.obstacle) == (Reason.DIFFERENT_IMAGES, "other images")
    assert _unpaired(candidate("A"), candidate("B"), LOSS, "").difference is None


def test_zero_has_no_sign() -> None:
    assert [_number(value, ACCURACY) for value in (-0.00001, 0.0, 0.00004, -0.01)] == ["0.00", "0.00", "0.00", "-1.00"]
