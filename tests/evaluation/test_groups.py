"""Groups of images in evaluation: sequences and sites."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inat_ft_groups.groups import clustered, pool

from inat_ft.evaluation.predictions import read_predictions
from inat_ft.metrics.base import Metric, Predictions, contributions_of
from inat_ft.metrics.bounds import Contributions, Method, paired, seed_variance_test
from inat_ft.metrics.builtin import proportion
from inat_ft.records import MetricValue, RunRecord
from inat_ft.training import train
from tests.conftest import make_images


def predictions(correct: np.ndarray) -> Predictions:
    """Images of class 0 that are predicted as class 0 where `correct`, else as class 1."""
    p = np.where(correct[:, None], [0.75, 0.25], [0.25, 0.75])
    true = np.zeros(len(correct), np.int64)
    paths = [f"{number}.jpg" for number in range(len(correct))]
    return Predictions(("fox", "hare"), paths, [""] * len(paths), true, p.argmax(1).astype(np.int64), p)


def interval(correct: np.ndarray, member: np.ndarray, metric: str = "accuracy") -> MetricValue:
    found = clustered(predictions(correct), {metric: MetricValue(value=float(correct.mean()))}, member)[metric]
    assert found.low is not None and found.high is not None
    return found


def rare(number: int, wrong: int) -> np.ndarray:
    return np.arange(number) >= wrong


@pytest.mark.parametrize(("number", "wrong"), [(50, 0), (50, 7), (400, 90)])
def test_groups_of_one_image_give_the_exact_interval(number: int, wrong: int) -> None:
    found, exact = interval(rare(number, wrong), np.arange(number)), proportion(number - wrong, number)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.012)


def test_ten_equal_images_count_as_one() -> None:
    found = interval(np.repeat(rare(50, 7), 10), np.repeat(np.arange(50), 10))
    single = interval(rare(50, 7), np.arange(50))
    assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=1e-9)


@pytest.mark.slow
def test_intervals_of_correlated_images_cover_the_population_value() -> None:
    rng, member, covered, naive = np.random.default_rng(0), np.repeat(np.arange(40), 10), 0, 0
    for _ in range(200):
        correct = rng.random(400) < rng.beta(1.6, 0.4, 40)[member]  # mean 0.8
        found, independent = interval(correct, member), proportion(int(correct.sum()), 400)
        covered += found.low <= 0.8 <= found.high
        naive += independent.low <= 0.8 <= independent.high
    assert covered >= 0.92 * 200
    assert naive < 0.85 * 200


def differences(each: float, seed: int = 0, number: int = 400) -> np.ndarray:
    """Differences of two classifiers on independent images, with the mean `each`."""
    rng = np.random.default_rng(seed)
    return rng.choice([-1.0, 0.0, 1.0], number, p=[0.15 - each / 2, 0.7, 0.15 + each / 2])


class TestTheDifferenceOfTwoClassifiers:
    def test_groups_of_one_image_are_images(self) -> None:
        images = Contributions(differences(0.1), -1.0, 1.0)
        single, groups = paired(images, 0.2), paired(replace(images, member=np.arange(400)), 0.2)
        assert groups.p == pytest.approx(single.p, rel=0.2)
        assert groups.difference.low == pytest.approx(single.difference.low, abs=0.005)
        assert groups.equivalent and single.equivalent
        assert (single.difference.method, groups.difference.method) == (Method.IMAGES, Method.GROUPS)

    def test_ten_equal_images_are_one(self) -> None:
        values, member = differences(0.04), np.repeat(np.arange(400), 10)
        once = paired(Contributions(values, -1.0, 1.0, member=np.arange(400)))
        often = paired(Contributions(values[member], -1.0, 1.0, member=member))
        assert often.p == pytest.approx(once.p, rel=0.4)
        assert paired(Contributions(values[member], -1.0, 1.0)).p < 0.01 * often.p

    def test_the_interval_excludes_0_exactly_when_the_test_rejects(self) -> None:
        decisions = set()
        for seed in range(60):
            values = differences(0.1, seed, 120)
            found = paired(Contributions(values, -1.0, 1.0, member=np.sort(np.arange(120) % 30)))
            excluded = found.difference.low > 0 or found.difference.high < 0
            assert excluded == (found.p < 0.05)
            decisions.add(excluded)
        assert decisions == {True, False}

    def test_one_group_proves_nothing(self) -> None:
        assert paired(Contributions(np.ones(50), -1.0, 1.0, member=np.zeros(50, np.int64))).p is None

    def test_equal_predictions_are_not_different(self) -> None:
        assert paired(Contributions(np.zeros(50), -1.0, 1.0, member=np.arange(50) // 5)).p == 1.0

    def test_seeds_and_groups_count(self) -> None:
        member = np.arange(400) // 20
        sides = [
            [Contributions(1.0 * (differences(0, seed) > 0), 0.0, 1.0) for seed in seeds] for seeds in ((1, 2), (3, 4))
        ]
        grouped = [[replace(run, member=member) for run in side] for side in sides]
        assert seed_variance_test(sides).difference.method == Method.SEEDS
        assert seed_variance_test(grouped).difference.method == Method.SEEDS_AND_GROUPS

    @pytest.mark.slow
    @pytest.mark.parametrize("equal_sizes", [True, False])
    def test_correlated_images_are_not_taken_for_evidence(self, equal_sizes: bool) -> None:
        rng, wrong, naive, number = np.random.default_rng(0), 0, 0, 400
        for _ in range(number):
            sizes = np.full(25, 12) if equal_sizes else 1 + rng.geometric(1 / 12, 25)
            member = np.repeat(np.arange(25), sizes)
            outcomes, p = [-1.0, 0.0, 1.0], [0.15, 0.7, 0.15]
            of_groups, copies = rng.choice(outcomes, 25, p=p), rng.random(len(member)) < 0.5
            values = np.where(copies, of_groups[member], rng.choice(outcomes, len(member), p=p))
            images = Contributions(values, -1.0, 1.0)
            naive += paired(images).p < 0.05
            wrong += paired(replace(images, member=member)).p < 0.05
        assert naive > 0.2 * number  # McNemar's test of images that are not independent
        assert 0.01 * number < wrong < 0.075 * number


def test_a_metric_of_probabilities_leaves_out_whole_groups() -> None:
    class Confidence(Metric):
        needs_probabilities = True

        def value(self, predictions: Predictions) -> float:
            return float(predictions.require_probabilities().max(1).mean())

    p = predictions(rare(1200, 300))
    found = contributions_of(Confidence(), replace(p, groups=np.arange(1200) // 40))
    assert len(found.values) == 30 and found.member is None and found.value == pytest.approx(0.75)
    assert len(contributions_of(Confidence(), p).values) == 500
    few = predictions(rare(60, 7))
    assert contributions_of(Confidence(), replace(few, groups=np.arange(60) // 6)).member is not None


def test_a_metric_that_is_not_a_mean_has_no_interval() -> None:
    values = {"ece": MetricValue(value=0.2, low=0.1, high=0.3), "macro_f1": MetricValue(value=0.8)}
    found = clustered(predictions(rare(60, 7)), values, np.arange(60) // 6)
    assert (found["ece"].value, found["ece"].low) == (0.2, None)
    assert found["macro_f1"].low < 0.8 < found["macro_f1"].high


def test_the_class_with_the_highest_mean_probability_is_that_of_the_group() -> None:
    p = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.2, 0.8], [0.9, 0.1]])
    true = np.array([0, 0, 0, 1, 0])
    images = Predictions(("fox", "hare"), list("abcde"), [""] * 5, true, p.argmax(1).astype(np.int64), p)
    pooled = pool(images, ["one", "one", "one", "site", "site"])
    assert pooled is not None
    assert list(pooled.paths) == ["one"]  # the site has images of two classes
    assert pooled.predicted.tolist() == [0]
    assert pooled.probabilities == pytest.approx(np.array([[1.7 / 3, 1.3 / 3]]))
    assert pool(images, ["site"] * 5) is None


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """Images in sequences of four: `class0/s3_1.png`, in folders of classes."""
    folder = make_images(tmp_path / "photos", each=24)
    for file in folder.rglob("*.png"):
        number, label = int(file.stem), file.parent.name[-1]
        file.rename(file.with_name(f"{label}s{number // 4}_{number % 4}.png"))
    return folder


@pytest.mark.slow
def test_eval_reports_sequences(sequences: Path, config, directories, cli) -> None:
    cli("split", sequences, "--group-by", "^[^_]+", "--out", "grouped.csv", "--no-near")
    run = train(config(data__split="grouped.csv", strategy__name="full"), directories)[1]
    found = cli("eval", run, "--json").json
    groups = found["groups"]
    assert (groups["num_groups"], groups["num_pooled"], groups["num_seen"]) == (found["num_images"] // 4,) * 2 + (0,)
    assert found["metrics"]["accuracy"]["method"] == "bootstrap of groups"
    pooled = read_predictions(run / groups["predictions"])
    assert groups["accuracy"]["value"] == pytest.approx(pooled.correct.mean())
    images = read_predictions(run / "predictions-test.csv")
    member = [path.rpartition("_")[0] for path in images.paths]
    rows = [number for number, name in enumerate(member) if name == pooled.paths[0].rpartition("_")[0]]
    assert pooled.probabilities[0] == pytest.approx(images.probabilities[rows].mean(0), abs=1e-6)
    shown = cli("eval", run).out
    assert f"intervals: bootstrap of {groups['num_groups']} groups\n" in shown
    assert f"on {groups['num_pooled']} groups of one class" in shown


@pytest.mark.slow
def test_compare_counts_sequences(sequences: Path, config, directories, cli) -> None:
    cli("split", sequences, "--group-by", "^[^_]+", "--out", "grouped.csv", "--no-near")
    runs = [train(config(data__split="grouped.csv", strategy__name="full", seed=s), directories)[1] for s in (0, 1)]
    for run in runs:
        groups = cli("eval", run, "--json").json["groups"]["num_groups"]
    found = cli("compare", *runs, "--json").json
    (pair,) = found["pairs"]
    assert (pair["num_groups"], pair["difference"]["method"]) == (groups, "groups of images (Student)")
    assert f"over {groups} groups of images" in found["sentence"]
    intervals = {entry["score"]["method"] for entry in found["entries"]}
    assert intervals == {"bootstrap of groups"}

    (runs[1] / "predictions-test.csv").rename("foreign.csv")  # a program that knows nothing of groups
    cli("record", "new", "foreign.csv", "--name", "foreign", "--out", "foreign.json")
    (pair,) = cli("compare", runs[0], "foreign.json", "--json").json["pairs"]
    assert pair["num_groups"] == groups


@pytest.mark.slow
def test_a_split_without_groups_has_the_record_of_earlier_versions(config, directories, cli) -> None:
    run = train(config(optim__epochs=1), directories)[1]
    found = cli("eval", run, "--json").json
    assert "groups" not in found
    record = RunRecord.model_validate_json((run / "record.json").read_text())
    assert "groups" not in json.loads(record.model_dump_json())["test"]
    assert not list(run.glob("*-groups.csv"))
    assert found["metrics"]["accuracy"]["method"] in ("exact", "wilson")
