"""The learning curve: nested subsets, what its law predicts, and the files of the command."""

import csv
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_insights.learning_curve import LearningCurve, Point, make_curve, summarize
from inat_ft_insights.power_law import Estimate, fit_power_law
from inat_ft_insights.subsets import nested_subsets, num_images, subset_counts

import inat_ft
from inat_ft.errors import DataError
from tests.conftest import make_images

NETWORK = ("--backbone", "resnet18", "--set", "model.weights=none", "--set", "data.image_size=32")
EXACT = ("--set", "compute.precision=fp32")  # features in reduced precision differ from those in full precision
TINY = {"backbone": "cnn", "image_size": 32, "batch_size": 8, "precision": "fp32", "settings": {"model.filters": 16}}
SIZES = 5 * 2.0 ** (np.arange(8) / 2)


def law_of(errors: np.ndarray):
    return fit_power_law(SIZES, errors, np.diag((0.01 * errors) ** 2), noise=0.001)


def test_the_law_of_the_measurements_is_found() -> None:
    law = law_of(0.8 * SIZES**-0.5)
    for factor in (2, 4, 8):
        size = factor * SIZES[-1]
        truth = 1 - 0.8 * size**-0.5
        found = law.accuracy(size)
        assert found.low < truth < found.high
        assert found.value == pytest.approx(truth, abs=0.02)
    near, far = law.accuracy(2 * SIZES[-1]), law.accuracy(16 * SIZES[-1])
    assert far.high - far.low > near.high - near.low
    needed = law.size_for(0.9)
    assert needed.low < 64 < needed.high  # (0.8 / 0.1) ** 2
    assert law.size_for(0.05).low == 1


def test_an_accuracy_above_the_floor_is_never_reached() -> None:
    needed = law_of(0.3 + 0.5 * SIZES**-1.0).size_for(0.9)
    assert math.isinf(needed.value) and math.isinf(needed.high)
    curve = LearningCurve(Path("splits/a.csv"), "resnet18", "head", 5, 3, [], None, 0.9, needed)
    assert curve.to_dict()["needed"]["high"] is None and curve.to_dict()["needed"]["images_per_class"] is None


def test_a_target_below_all_measurements_has_the_smallest_size_as_its_limit() -> None:
    needed = law_of(0.3 * SIZES**-0.5).size_for(0.2).at_least(5.0)
    assert (needed.low, needed.value, needed.high) == (5, 5, 5)
    first = Point("measured", 15, 5.0, Estimate(0.9, 0.8, 1.0))
    curve = LearningCurve(Path("splits/a.csv"), "resnet18", "head", 5, 3, [first], None, 0.2, needed)
    assert "accuracy 0.2: at most 5 training images per class (95% interval at most 5 to at most 5)" in curve.summary
    never = replace(curve, needed=Estimate(math.inf, 2e6, math.inf))
    assert "more than a million training images per class (95% interval more than a million);" in never.summary


@pytest.mark.parametrize(("wrong", "low", "high"), [(0, 0.9179, 1.0), (2, 0.842, 0.9943)])
def test_the_interval_of_few_wrong_images_is_at_least_the_exact_one(wrong: int, low: float, high: float) -> None:
    mistakes = np.broadcast_to(np.arange(43) < wrong, (3, 2, 43))
    subsets = np.array([[0, 0, 0, 1, 1, 1]] * 3)
    manifest = SimpleNamespace(classes=("a", "b"), path=Path("splits/a.csv"))
    config = SimpleNamespace(seed=0, model=SimpleNamespace(backbone="cnn"))
    curve = make_curve(mistakes, subsets, np.arange(43), manifest, config, "head", None)
    assert curve.measured.accuracy.low <= low + 1e-3 and curve.measured.accuracy.high >= high - 1e-3


def test_subsets_are_stratified() -> None:
    counts = np.array([40, 80, 3])
    subsets = subset_counts(counts, 9)
    assert (subsets[-1] == counts).all()
    for small, large in pairwise(subsets):
        assert (small <= large).all() and small.sum() < large.sum()
    assert (subsets >= 1).all()
    assert subsets[-3].tolist() == [20, 40, 2]
    assert subset_counts(np.array([8, 8]), 3).tolist() == [[2, 2], [4, 4], [8, 8]]
    with pytest.raises(DataError, match="needs more training images than 3 of 3 classes"):
        nested_subsets(np.arange(3), np.arange(3), 2, 5, 0)


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=24, max_size=80), st.integers(2, 9))
def test_subsets_are_nested_and_divide_no_group(images: list[tuple[int, int]], sizes: int) -> None:
    labels, groups = (np.array(column) for column in zip(*images, strict=True))
    try:
        found = nested_subsets(labels, groups, 3, sizes, 0)
    except DataError:
        return
    assert (np.diff(num_images(found)) > 0).all() and (num_images(found)[:, -1] == len(images)).all()
    for draw in found:
        for place in range(int(found.max()) + 1):
            inside = draw <= place
            assert set(labels[inside]) == set(labels)
            assert not set(groups[inside]) & set(groups[~inside])


def test_the_deviation_covers_the_choice_of_validation_images() -> None:
    rng = np.random.default_rng(0)
    hard = rng.uniform(0, 1, 400) < 0.3  # the same images are wrong in all draws and sizes
    wrong = np.broadcast_to(hard, (5, 4, 400))
    errors, covariance, noise = summarize(wrong, np.array([1.0, 2, 4, 8]), np.arange(400))
    assert np.allclose(errors, hard.mean())
    assert np.allclose(np.sqrt(np.diag(covariance)), np.sqrt(0.3 * 0.7 / 400), rtol=0.15)
    assert covariance[0, 3] / covariance[0, 0] > 0.95
    assert noise == 0
    grouped = np.broadcast_to(hard[np.repeat(np.arange(100), 4)], (5, 4, 400))  # 100 groups of 4 equal images
    _, wider, _ = summarize(grouped, np.array([1.0, 2, 4, 8]), np.repeat(np.arange(100), 4))
    _, narrow, _ = summarize(grouped, np.array([1.0, 2, 4, 8]), np.arange(400))
    assert np.allclose(np.diag(wider) / np.diag(narrow), 4, rtol=0.3)


def test_the_command_writes_points_and_a_picture(tmp_path: Path, invoke) -> None:
    invoke("split", make_images(tmp_path / "photos", each=40), "--no-near")
    found = invoke("learning-curve", *NETWORK, *EXACT, "--target", 0.9, "--draws", 3, "--json")

    assert found.code == 0, found.err
    points = found.json["points"]
    measured = [point for point in points if point["kind"] == "measured"]
    assert [point["images"] for point in measured] == sorted({point["images"] for point in measured})
    assert measured[-1]["images"] == 78  # 40 less 20% for the test, less 20% for validation
    assert measured[-1]["accuracy"] > 0.6 > 1 / 3
    assert all(point["low"] <= point["accuracy"] <= point["high"] for point in points)
    assert [point["images"] for point in points if point["kind"] == "extrapolated"] == [156, 312, 624]
    assert found.json["needed"]["low"] is not None
    with Path(found.json["csv"]).open(newline="") as text:
        assert [float(row["accuracy"]) for row in csv.DictReader(text)] == [point["accuracy"] for point in points]
    assert Path(found.json["picture"]).read_bytes()[:4] == b"\x89PNG"
    assert found.json["mode"] == "head"

    trained = invoke("train", *NETWORK, "--mode", "partial", "--epochs", 1, "--name", "r", "--precision", "fp32")
    assert trained.code == 0, trained.err
    of_run = inat_ft.learning_curve("runs/r", draws=3, target=0.9)
    assert of_run.to_dict() == found.json  # the same network and split
    assert of_run.summary in invoke("learning-curve", "runs/r", "--draws", 3, "--target", 0.9).out
    assert invoke("learning-curve", "runs", "--json").code == 2


def test_a_strategy_is_trained_for_each_draw_and_size_and_continues_after_an_interruption(tmp_path: Path) -> None:
    split = inat_ft.split(make_images(tmp_path / "photos", each=20), near=False)
    chosen = {"split": split, "mode": "full", "epochs": 1, "draws": 2, "sizes": 2, **TINY}
    lines: list[str] = []
    epochs = iter(range(9))

    def stop(epoch: object) -> None:
        if next(epochs) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        inat_ft.learning_curve(**chosen, callbacks=inat_ft.TrainCallbacks(on_epoch=stop))
    assert stopped.value.__notes__ == ["2 of 4 runs are finished; the same command continues"]
    folder = Path("insights/learning-curve-photos-full")
    kept = {file: file.read_text() for file in (folder / "points").glob("*.csv")}
    assert len(kept) == 2

    curve = inat_ft.learning_curve(**chosen, callbacks=inat_ft.TrainCallbacks(log=lines.append))

    assert lines[-1].startswith("warning: fewer than four sizes") and curve.law is None
    assert lines[0] == "2 runs with 45 images in total, 1.2 times all 39; 2 are finished already"
    assert all(file.read_text() == text for file, text in kept.items())
    assert [point.images for point in curve.points] == [6, 39] and curve.mode == "full" and curve.draws == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock", "learning-curve.csv", "learning-curve.png", "learning-curve.svg", "points",
    ]  # fmt: skip
    at_once = inat_ft.learning_curve(**chosen, out="other")
    assert at_once.table == curve.table
    points = [sorted(path.name for path in (place / "points").iterdir()) for place in (folder, Path("other"))]
    assert points[0] == points[1] and len(points[0]) == 4


def test_a_folder_that_cannot_be_created_is_named(manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(inat_ft.UsageError, match=r"cannot create the folder .*file/points"):
        inat_ft.learning_curve(split=manifest_file, mode="full", out=tmp_path / "file", **TINY)


def test_values_that_cannot_be_used_are_refused(cli) -> None:
    Path("config.yaml").write_text("seed: 1\n")  # of another run
    for options, message in (
        ({"draws": 1}, "draws 1 is not from 2 to 1,000"),
        ({"sizes": 99}, "sizes 99 is not from 2 to 20"),
        ({"target": 95}, "target 95 is not between 0 and 1"),
        ({"mode": "ful"}, "did you mean 'full'"),
        ({"run": "runs/a", "config": "b.yaml"}, "both give the settings"),
        ({"run": "missing"}, "run not found: missing"),
        ({"settings": {"strategy.name": "full"}}, "strategy.name is 'full', but mode is 'head'"),
        ({"mode": "lora", "settings": {"strategy.rank": 2}, "split": "missing.csv"}, "no such manifest: missing.csv"),
    ):
        with pytest.raises(inat_ft.UsageError, match=message):
            inat_ft.learning_curve(**options)
    for words, message in (
        (("missing",), "run not found: missing"),
        (("--set", "strategy.name=full"), "strategy.name is 'full', but mode is 'head'"),
        (("--mode", "lora", "--set", "strategy.rank=2", "--split", "missing.csv"), "no such manifest: missing.csv"),
    ):
        ran = cli("learning-curve", *words)
        assert ran.code == 2 and message in ran.err, ran.err
