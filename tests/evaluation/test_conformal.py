"""Prediction sets: their coverage, the images that need no review, and the options of `eval` and `predict`."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from inat_ft_conformal.assessment import assess
from inat_ft_conformal.drawing import draw_curves
from inat_ft_conformal.selective import risk_coverage, select
from inat_ft_conformal.sets import conformity, fewest_images, fit_thresholds, in_set, threshold

import inat_ft
from inat_ft.evaluation.prediction import Prediction as PredictedImage
from inat_ft.metrics.base import Predictions
from inat_ft.training import train


def simulate(rng: np.random.Generator, images: int, classes: int = 6, sharpness: float = 2.0):
    """Labels that are drawn from probabilities, and what an overconfident network says."""
    logits = rng.normal(0, sharpness, (images, classes))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = (p.cumsum(1) > rng.uniform(size=(images, 1))).argmax(1)
    said = p**3
    return said / said.sum(1, keepdims=True), true


def test_the_score_sums_what_is_more_probable() -> None:
    p = np.array([[0.1, 0.6, 0.3], [0.2, 0.3, 0.5]])
    assert conformity(p) == pytest.approx(np.array([[0.1, 1.0, 0.4], [0.2, 0.5, 1.0]]))
    tiny = np.array([[1 - 1e-30, 1e-30, 1e-40]])
    assert conformity(tiny)[0, 1] > conformity(tiny)[0, 2] > 0
    many = np.full((1, 8), 0.125)
    assert np.diff(conformity(many)[0])[4:] == pytest.approx(-0.135)  # 1/8, and the penalty from the sixth rank


def test_the_threshold_has_the_correction_for_few_images() -> None:
    values = np.arange(1, 20) / 20
    assert threshold(values, 0.9) == values[1]  # 18 of 19 reach it: ceil(20 * 0.9)
    assert threshold(values[:9], 0.9) == values[0]
    assert threshold(values[:8], 0.9) == -math.inf
    assert threshold(values, 1e-300) == values[-1]
    assert [fewest_images(coverage) for coverage in (0.5, 0.9, 0.95, 0.99)] == [1, 9, 19, 99]


@pytest.mark.parametrize("by_class", [False, True])
def test_sets_cover_as_often_as_they_say(by_class: bool) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(100):
        p, true = simulate(rng, 900)
        thresholds = fit_thresholds(p[:500], true[:500], 0.9, by_class)
        members = in_set(p[500:], thresholds)
        assert members[np.arange(400), p[500:].argmax(1)].all()  # no set is empty
        found.append(members[np.arange(400), true[500:]])
    assert np.mean(found) == pytest.approx(0.906 if by_class else 0.9, abs=0.01)


def test_rounding_in_the_file_of_calibration_does_not_change_sets() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):  # a network with the same output for all images
        p = np.broadcast_to(rng.dirichlet(np.ones(9)), (60, 9))
        true = rng.choice(9, 60, p=p[0])
        stored = np.vectorize(lambda value: float(f"{value:.9g}"))(p)
        thresholds = fit_thresholds(stored, true, 0.9)
        assert in_set(p, thresholds)[np.arange(60), true].mean() >= 0.9
        assert (in_set(p, thresholds) == in_set(stored, thresholds)).all()


def test_a_class_keeps_its_coverage_only_if_it_is_calibrated_alone() -> None:
    rng, covered = np.random.default_rng(1), {False: [], True: []}
    for _ in range(60):
        p, true = simulate(rng, 1200)
        p[:, 0] *= 0.02  # a class that the network neglects
        p /= p.sum(1, keepdims=True)
        rare = true[600:] == 0
        for by_class, found in covered.items():
            members = in_set(p[600:], fit_thresholds(p[:600], true[:600], 0.9, by_class))
            found.append(members[rare, 0].mean())
    assert np.mean(covered[False]) < 0.8
    assert np.mean(covered[True]) == pytest.approx(0.905, abs=0.015)


def as_predictions(p, true) -> Predictions:
    return Predictions(tuple(map(str, range(p.shape[1]))), (), (), true, p.argmax(1), p)


def test_the_most_confident_images_reach_the_wanted_accuracy() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    curve = risk_coverage(as_predictions(p, np.array([0, 0, 1, 0, 0])))
    assert curve.confidence.tolist() == [0.9, 0.8, 0.7, 0.6]  # equal ones are accepted together
    assert curve.accepted.tolist() == [1, 3, 4, 5] and curve.wrong.tolist() == [0, 1, 1, 1]
    assert curve.confidence_for(0.6) == 0.6 and curve.confidence_for(0.9) is None  # 2 of 6, 1 of 2
    rng = np.random.default_rng(2)
    calibration, test = (as_predictions(*simulate(rng, 3000, sharpness=6.0)) for _ in range(2))
    found = select(risk_coverage(calibration), test, 0.95)
    assert 0.2 < found.share.value < 0.9 and test.correct.mean() < 0.9
    assert found.reached.value == pytest.approx(0.95, abs=0.02)
    nothing = select(risk_coverage(calibration), test, 1.0)
    assert nothing.confidence is None and nothing.share.value == 0


@pytest.fixture
def run(config, directories) -> Path:
    options = {"optim__epochs": 1, "optim__lr": 1e-2, "strategy__name": "full", "seed": 3}
    return train(config(model__backbone="cnn", **options), directories)[1]


def test_predict_adds_sets_and_decisions(trained: Path, images: Path, cli) -> None:
    plain = cli("predict", trained, images, "--out", "plain.csv", "--json")
    found = cli("predict", trained, images, "--coverage", "0.8", "--out", "sets.csv", "--json")
    assert found.code == 0, found.err
    for before, row in zip(plain.json, found.json, strict=True):
        assert row["predicted"] == row["set"][0]
        assert row["decision"] == ("accept" if len(row["set"]) == 1 else "review")
        assert before == {key: value for key, value in row.items() if key not in ("set", "decision")}
    with Path("plain.csv").open() as without, Path("sets.csv").open() as file:
        before, after = list(csv.DictReader(without)), list(csv.DictReader(file))
    assert list(before[0]) == ["path", "predicted", "confidence", "p_class0", "p_class1", "p_class2"]
    assert list(after[0]) == ["path", "predicted", "confidence", "set", "decision", "p_class0", "p_class1", "p_class2"]
    assert [row["set"].split("|") for row in after] == [row["set"] for row in found.json]
    shown = cli("predict", trained, images, "--coverage", "0.8")
    assert "accepted: " in shown.out and "decision" in shown.out
    by_class = inat_ft.predict(trained / "model.safetensors", images, coverage=0.5, by_class=True)
    assert all(each.set and each.decision for each in by_class)
    twice = inat_ft.predict([trained, trained], images, coverage=0.8)
    assert [list(each.set) for each in twice] == [row["set"] for row in found.json]


def test_names_in_a_set_are_unambiguous() -> None:
    names = ("a|b", "a", "b", "a\\", "\\|")
    sets = [
        PredictedImage(Path("x"), names, np.ones(5), set=each).columns()["set"]
        for each in (names, names[:1], names[1:3])
    ]
    assert sets[1:] == [r"a\|b", "a|b"]
    parts = re.findall(r"((?:[^|\\]|\\.)+)", str(sets[0]))
    assert tuple(re.sub(r"\\(.)", r"\1", part) for part in parts) == names


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("predict", "--coverage", "0.99"), "coverage 0.99 requires at least 99 validation images; there are"),
        (("eval", "--coverage", "0.99"), "coverage 0.99 requires at least 99 validation images; there are"),
        (("eval", "--coverage", "0.8", "--subset", "val"), "are calibrated on the validation images"),
        (("predict", "--coverage", "90"), "--coverage 90 is not between 0 and 1"),
        (("predict", "--coverage", "0"), "--coverage 0 is not between 0 and 1"),
        (("predict", "--coverage", "0.9999999"), "coverage 0.9999999 requires"),
        (("predict", "--by-class"), "--by-class requires --coverage"),
        (("predict", "--coverage", "0.9", "--by-class"), "at least 9 .* there are fewer of class0"),
        (("eval", "--coverage", "0.8", "--tta", "flip"), "made with the same options .* --subset val --tta flip"),
    ],
)
def test_what_cannot_be_calibrated(words: tuple[str, ...], problem: str, trained: Path, images: Path, cli) -> None:
    (command, *options), before = words, (trained / "record.json").read_bytes()
    refused = cli(command, trained, *[images] * (command == "predict"), *options)
    assert refused.code == 2
    assert re.search(problem, " ".join(refused.err.split())), refused.err
    assert (trained / "record.json").read_bytes() == before  # the test set was not evaluated


@pytest.mark.slow
def test_eval_measures_the_sets_and_draws_the_curve(run: Path, cli) -> None:
    evaluated = cli("eval", run, "--coverage", "0.8", "--json")
    assert evaluated.code == 0, evaluated.err
    told = evaluated.json["conformal"]
    assert told == json.loads((run / "conformal-test.json").read_text())
    assert told["num_calibration"] >= fewest_images(0.8) and len(told["selections"]) == 4
    assert (run / "figures" / "risk-coverage-test.png").exists()
    again = cli("eval", run, "--json").json
    assert "conformal" not in again and not any("risk-coverage" in name for name in again["figures"])
    assert again["metrics"] == evaluated.json["metrics"]
    text = cli("eval", run, "--coverage", "0.8").out
    assert "prediction sets for coverage 0.8" in text and "need no review" in text
    assert inat_ft.evaluate(run, coverage=0.5).conformal.covered.value > 0.4


def test_sets_and_accepted_images_are_counted(tmp_path: Path) -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    test = as_predictions(p, np.array([0, 1, 1, 1, 0]))
    rng = np.random.default_rng(0)
    validation = as_predictions(*simulate(rng, 300, classes=2))
    thresholds = np.array([0.35, 0.35])
    found = assess(validation, test, thresholds, 0.9, True)
    members = in_set(p, thresholds)
    assert members.tolist() == [[True, False], [True, False], [True, True], [False, True], [True, True]]
    assert found.covered.value == 0.8 and found.mean_size == pytest.approx(1.4)
    assert [found.covered_by_class[name].value for name in "01"] == [1.0, pytest.approx(2 / 3)]
    assert found.accepted.value == 0.6 and found.accepted_accuracy.value == pytest.approx(2 / 3)
    assert "80.0% contain the true class" in found.summary and "66.7% of these are correct" in found.summary
    told = json.loads(json.dumps(found.to_dict()))
    assert told["coverage"] == 0.9 and told["num_calibration"] == 300 and told["covered"]["value"] == 0.8
    assert len(found.table) == len(told["selections"]) == len(found.selections)
    for row, each in zip(found.table, found.selections, strict=True):
        assert row["probability at least"] == each.confidence and row["need no review"] == each.share.value
    (tmp_path / "figures").mkdir()
    assert {Path(file).suffix for file in draw_curves(validation, test, found, tmp_path / "figures")} >= {".png"}


def test_without_accepted_images_their_accuracy_is_unknown() -> None:
    p = np.full((4, 2), 0.5)
    test = as_predictions(p, np.array([0, 1, 0, 1]))
    found = assess(test, test, np.array([0.0, 0.0]), 0.9, False)
    assert found.accepted.value == 0 and found.mean_size == 2 and found.covered.value == 1
    assert found.to_dict()["accepted_accuracy"] == {"value": None, "low": None, "high": None}
    assert "of these are correct" not in found.summary
