"""What limits the result of a comparison: images that were trained on, and weak evidence."""

import json
from pathlib import Path

import numpy as np
import pytest

from inat_ft.data.manifest import SUBSETS, Manifest, write_manifest
from inat_ft.errors import RecordError
from inat_ft.evaluation.compare import Comparison, compare
from inat_ft.evaluation.predictions import Predictions, write_predictions
from tests.evaluation.test_compare import NUMBER, record, right

RIGHT = right(0.9)


def trained_with(
    run: Path, train: list[str], tested: list[str], hashes: list[str] | None = None, **change: str
) -> None:
    """Let a run name a manifest with these training and test images; change: of the split in the record."""
    paths = [*train, *tested]
    subsets = [SUBSETS.index("train")] * len(train) + [SUBSETS.index("test")] * len(tested)
    manifest = Manifest(
        run / "m.csv",
        run,
        ("a", "b"),
        paths,
        np.zeros(len(paths), np.int64),
        np.array(subsets, np.uint8),
        hashes or [f"{number:064x}" for number in range(10**6, 10**6 + len(paths))],
        [""] * len(paths),
    )
    write_manifest(manifest)
    raw = json.loads((run / "record.json").read_text())
    split = {"manifest": "m.csv", "fingerprint": manifest.fingerprint, "counts": {}} | change
    (run / "record.json").write_text(json.dumps({**raw, "split": split}))


def without_hashes(run: Path, prefix: str = "") -> None:
    """Remove the hashes of the predictions, as other programs write them, and put the paths below a folder."""
    classes, n = ("a", "b"), len(RIGHT)
    true = np.arange(n) % 2
    paths = [f"{prefix}{number}.jpg" for number in range(n)]
    write_predictions(run / "p.csv", Predictions(classes, paths, [""] * n, true, np.where(RIGHT, true, 1 - true)))


def says(found: Comparison, text: str) -> bool:
    return any(text in remark for remark in found.remarks)


def test_training_images_among_the_test_images_are_found_by_content(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", right(0.5))
    trained_with(a, [f"t{n}.jpg" for n in range(3)], ["u.jpg"], [f"0{n:063x}" for n in (5, 6, 10**6, 7)])
    found = compare([a, b])
    assert says(found, "A was trained on 2 of its own test images: its test accuracy is invalid")
    assert says(found, "A was trained on 2 of the test images of B: its result on them is invalid")
    assert "a classifier was trained on images that it is tested on" in found.summary and "better" not in found.summary


def test_without_hashes_training_images_are_found_by_the_ends_of_paths(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", RIGHT)
    for run, prefix in ((a, "/data/x/"), (b, "C:\\data\\x\\")):
        without_hashes(run, prefix)
    trained_with(a, ["x/1.jpg", "x/2.jpg", "elsewhere/3.jpg"], ["x/4.jpg"])
    assert says(compare([a, b]), "A was trained on 2 of its own test images")
    trained_with(b, ["1.jpg", "2.jpg", "5.jpg"], ["x/1.jpg"])  # x/1.jpg is another file than 1.jpg
    assert says(compare([a, b]), "B was trained on 2 of its own test images")


def test_a_split_without_overlap_allows_a_conclusion(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", right(0.5))
    for run in (a, b):
        trained_with(run, ["t.jpg"], ["u.jpg"])
    found = compare([a, b])
    assert found.summary.startswith("A is better than B") and not says(found, "was trained")


@pytest.mark.parametrize("change", [{"manifest": "gone.csv"}, {"fingerprint": "0" * 64}])
def test_a_manifest_that_is_missing_or_has_changed_is_named(tmp_path: Path, change: dict[str, str]) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", right(0.5))
    trained_with(a, ["t.jpg"], ["u.jpg"], **change)
    name = change.get("manifest", "m.csv")
    assert says(
        compare([a, b]), f"A was trained with {name}, which is missing or has changed: overlap cannot be checked"
    )


def test_many_evaluations_and_mirrored_images_of_only_one_are_reported(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", right(0.5))
    for run, tta, look in ((a, "flip", 2), (b, "none", 3)):
        raw = json.loads((run / "record.json").read_text())
        test = {"subset": "test", "num_images": NUMBER, "fingerprint": "f", "metrics": {}, "tta": tta, "look": look}
        (run / "record.json").write_text(json.dumps({**raw, "test": test}))
    found = compare([a, b])
    assert says(found, "A averages predictions over mirrored images") and not says(found, "B averages")
    assert says(found, "B has a test set that was evaluated 3 times") and not says(found, "evaluated 2 times")


def probabilities(run: Path, odd: int = 0, classes: int = 2, rare: int = 0) -> None:
    """Write predictions with probabilities. odd: how many predict another class; rare: images of the last class."""
    true = np.arange(NUMBER) % classes if not rare else (np.arange(NUMBER) < rare) * (classes - 1)
    shares = np.full((NUMBER, classes), 0.1 / (classes - 1))
    shares[np.arange(NUMBER), true] = 0.9
    predicted = true.copy()
    predicted[:odd] = (predicted[:odd] + 1) % classes
    paths, hashes = [f"{n}.jpg" for n in range(NUMBER)], [f"0{n:063x}" for n in range(NUMBER)]
    names = tuple("abcdefgh"[:classes])
    write_predictions(run / "p.csv", Predictions(names, paths, hashes, true, predicted, shares))


def test_predictions_that_contradict_their_probabilities_and_rare_classes_are_reported(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", RIGHT)
    probabilities(a, odd=3, rare=4)
    probabilities(b, rare=4)
    found = compare([a, b], metric="macro_f1")
    assert says(found, "A predicts another class than the most probable one for 3 images")
    assert not says(found, "B predicts another class")
    assert says(found, "has fewer than 5 test images in 1 of 2 classes, 4 in the rarest")


def test_a_metric_of_probabilities_needs_them(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", RIGHT)
    probabilities(b)
    (tmp_path / "c.json").write_text('{"name": "C", "test_accuracy": 0.5, "num_test": 20}')
    found = compare([a, b, tmp_path / "c.json"], metric="log_loss")
    assert says(found, "A has predictions without probabilities, so its log loss cannot be computed")
    assert says(found, "C has no predictions, so its log loss cannot be computed")
    assert [candidate.score is None for candidate in found.candidates].count(True) == 2


def test_predictions_that_cannot_be_read_and_runs_without_an_evaluation_are_named(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", RIGHT), record(tmp_path, "B", RIGHT)
    (a / "p.csv").unlink()
    found = compare([a, b])
    assert says(found, "A has predictions that cannot be read") and found.pairs[0].p is None
    c = record(tmp_path, "C", config={"seed": 1})
    assert says(compare([b, c]), f"C has no test_accuracy: it has not been evaluated on a test set: inat-ft eval {c}")


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [record(tmp_path, "A", RIGHT).rename(tmp_path / folder) for folder in ("one", "two")]
    assert {candidate.name for candidate in compare(runs).candidates} == {"A (one)", "A (two)"}


def test_a_group_excludes_runs_on_other_images_and_one_run_is_left(tmp_path: Path) -> None:
    record(tmp_path / "runs", "a0", RIGHT, config={"x": 1, "seed": 0}, seed=0)
    record(tmp_path / "runs", "a1", RIGHT, tag="f", config={"x": 1, "seed": 1}, seed=1)
    record(tmp_path / "runs", "b", right(0.5))
    found = compare([tmp_path / "runs"], group=True)
    assert sorted(candidate.name for candidate in found.candidates) == ["a0", "b"]
    assert says(found, "a0 excludes a1: ")


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecordError, match="empty has no runs"):
        compare([tmp_path / "empty", record(tmp_path, "A", RIGHT)])
