"""An audit finds wrong labels, keeps its hands off the test set, and its verdicts come back through `split --corrections`."""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from inat_ft_insights.audit import Kind, confident_errors, label_margin, neighbor_distance
from inat_ft_insights.classifier import fold_numbers
from PIL import Image

import inat_ft
from inat_ft.data.manifest import read_manifest
from inat_ft.evaluation.predictions import write_csv
from tests.conftest import make_images

NETWORK = ("--backbone", "resnet18", "--set", "model.weights=none", "--set", "data.image_size=32")
WRONG = ("class0/900.png", "class1/901.png")


@pytest.fixture
def photos(tmp_path: Path, invoke) -> Path:
    """Images of three classes in three colors; two training images are in the folder of another class."""
    root = make_images(tmp_path / "photos", each=30)
    for path, source in zip(WRONG, ("class2/000.png", "class0/000.png"), strict=True):
        shutil.move(root / source, root / path)
    assert invoke("split", root, "--no-near", "--test-fraction", 0.2).code == 0
    manifest = read_manifest(Path("splits/photos.csv"))
    assert "test" not in {("train", "val", "test")[manifest.subsets[manifest.paths.index(path)]] for path in WRONG}
    return root


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def fill(file: Path, verdicts: dict[str, str]) -> None:
    rows = [{**row, "verdict": verdicts.get(row["path"], "")} for row in rows_of(file)]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_wrong_labels_come_first_and_the_test_set_is_untouched(photos: Path, invoke) -> None:
    found = invoke("audit", "splits/photos.csv", *NETWORK, "--json")

    assert found.code == 0, found.err
    suspects = found.json["suspects"]
    assert {suspect["path"] for suspect in suspects[:2]} == set(WRONG)
    suggested = {suspect["path"]: suspect["suggested"] for suspect in suspects[:2]}
    assert suggested == {"class0/900.png": "class2", "class1/901.png": "class0"}
    assert {suspect["subset"] for suspect in suspects} <= {"train", "val"}
    manifest = read_manifest(Path("splits/photos.csv"))
    assert found.json["images"] == len(manifest.rows("train")) + len(manifest.rows("val"))

    rows = rows_of(Path("insights/audit-photos/audit.csv"))
    assert [row["path"] for row in rows] == [suspect["path"] for suspect in suspects]
    assert {row["verdict"] for row in rows} == {""}
    page = Path("insights/audit-photos/audit.html").read_text()
    assert page.count("data:image/jpeg;base64,") == len(suspects)
    assert page.index(suspects[0]["path"]) < page.index(suspects[1]["path"])
    assert 'src="http' not in page and "<script" not in page

    options = {"backbone": "resnet18", "weights": "none", "image_size": 32}
    same = inat_ft.audit("splits/photos.csv", **options, out="again")
    assert {**same.to_dict(), "page": found.json["page"], "csv": found.json["csv"]} == found.json
    assert same.page.read_text().count("data:image/jpeg;base64,") == len(suspects)
    assert f"suspected label errors: {same.count(Kind.LABEL)} of 72 images" in same.summary and same.unchecked == []
    for wrong, message in (
        ({"subsets": ["tset"]}, "unknown subset 'tset'"),
        ({"subsets": "tset"}, "unknown subset 'tset'"),
        ({"subsets": []}, "no subset to audit"),
        ({"limit": 0}, "limit=0 is out of range"),
    ):
        with pytest.raises(inat_ft.UsageError, match=message):
            inat_ft.audit("splits/photos.csv", **wrong)

    tested = invoke("audit", "splits/photos.csv", *NETWORK, "--json", "--subset", "test", "--out", "tested")
    assert tested.json["images"] == len(manifest.rows("test"))
    assert "change the test set" in tested.err


def test_features_that_do_not_fit_the_classes_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in "abc":
        (tmp_path / "noise" / name).mkdir(parents=True)
        for number in range(6):
            noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8))
            noise.save(tmp_path / "noise" / name / f"{number}.png")
    split, lines = inat_ft.split(tmp_path / "noise", near=False), []
    options = {"backbone": "cnn", "image_size": 32, "callbacks": inat_ft.TrainCallbacks(log=lines.append)}
    found = inat_ft.audit(split, **options)
    is_named = any(line.startswith("warning: the classifier agrees with only") for line in lines)
    assert is_named == (found.estimated_errors > len(found.ranking) / 2)
    assert is_named, found.summary


def test_verdicts_come_back_and_other_images_keep_their_subset(photos: Path, invoke) -> None:
    invoke("audit", "splits/photos.csv", *NETWORK)
    reviewed = Path("insights/audit-photos/audit.csv")
    fill(reviewed, {WRONG[0]: "drop", WRONG[1]: "class0"})
    again = invoke("audit", "splits/photos.csv", *NETWORK)  # does not lose the verdicts
    assert "2 verdicts of the existing" in again.err
    assert {row["path"]: row["verdict"] for row in rows_of(reviewed) if row["verdict"]} == {
        WRONG[0]: "drop",
        WRONG[1]: "class0",
    }

    options = ("--no-near", "--test-fraction", 0.2, "--corrections", reviewed)
    made = invoke("split", photos, *options, "--out", "splits/corrected.csv")

    assert made.code == 0, made.err
    assert "corrections: 1 label changed, 1 image dropped, by audit.csv" in made.out
    before, after = read_manifest(Path("splits/photos.csv")), read_manifest(Path("splits/corrected.csv"))
    subsets = dict(zip(before.paths, before.subsets.tolist(), strict=True))
    labels = dict(zip(before.paths, before.labels.tolist(), strict=True))
    assert set(before.paths) - set(after.paths) == {WRONG[0]}
    assert [subsets[path] for path in after.paths] == after.subsets.tolist()
    changed = [p for p, label in zip(after.paths, after.labels.tolist(), strict=True) if labels[p] != label]
    assert changed == [WRONG[1]]
    assert after.made["corrections"] == {
        "file": "audit.csv",
        "dropped": 1,
        "relabelled": {WRONG[1]: ["class1", "class0"]},
    }
    assert [left.path for left in after.left_out if left.reason == "corrected"] == [WRONG[0]]
    assert invoke("split", "--check", "splits/corrected.csv").code == 0


def test_a_corrected_label_of_a_listed_image_is_not_reported_as_changed(photos: Path, invoke) -> None:
    listed = [(path.relative_to(photos).as_posix(), path.parent.name) for path in sorted(photos.glob("*/*.png"))]
    with (photos / "list.csv").open("w", newline="") as out:
        csv.writer(out).writerows([("path", "label"), *listed])
    Path("verdicts.csv").write_text(f"path,verdict\n{WRONG[0]},class2\n")
    options = ("--no-near", "--corrections", "verdicts.csv")
    assert invoke("split", photos / "list.csv", *options, "--out", "splits/listed.csv").code == 0
    assert invoke("split", "--check", "splits/listed.csv").code == 0

    (photos / "list.csv").write_text(
        (photos / "list.csv").read_text().replace(f"{WRONG[0]},class0", f"{WRONG[0]},class1")
    )
    assert WRONG[0] in invoke("split", "--check", "splits/listed.csv").out


@pytest.mark.skipif(sys.platform != "linux", reason="a backslash separates folders, or the file system changes names")
def test_verdicts_apply_to_unusual_paths(tmp_path: Path, invoke) -> None:
    root = make_images(tmp_path / "photos", each=12)
    unusual = [" spaces/000.png", "class1/back\\slash.png", "=sum/001.png", "class2/a,b;'c\".png"]
    (root / "class0").rename(root / " spaces")
    shutil.copytree(root / "class1", root / "=sum")
    for path, source in ((unusual[1], "class1/000.png"), (unusual[3], "class2/000.png")):
        (root / source).rename(root / path)
    for number, path in enumerate(sorted((root / "=sum").iterdir())):
        Image.new("RGB", (40, 40), (number, 200, 255)).save(path)
    assert invoke("split", root, "--no-near").code == 0
    split = read_manifest(Path("splits/photos.csv"))
    assert set(unusual) <= set(split.paths)
    write_csv(Path("verdicts.csv"), ["path", "verdict"], [(path, "drop") for path in unusual])
    made = invoke("split", root, "--no-near", "--corrections", "verdicts.csv", "--force")
    assert made.code == 0 and "4 images dropped" in made.out, made.err
    assert set(split.paths) - set(read_manifest(Path("splits/photos.csv")).paths) == set(unusual)


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("path,verdict\nclass0/001.png,dorp\n", 1, "line 2: unknown verdict 'dorp': did you mean 'drop'?"),
        ("path,verdict\nclass0/001.png,ok\nclass0/001.png,drop\n", 1, "line 3: class0/001.png has two different"),
        ("path,label\nclass0/001.png,a\n", 1, "requires the columns path and verdict"),
        ("path,verdict\nelsewhere.png,drop\n", 2, "does not list any of the images"),
        ("", 2, "--corrections: no such file: verdicts.csv"),
    ],
)
def test_verdicts_that_cannot_be_used_are_refused(photos: Path, invoke, text: str, code: int, message: str) -> None:
    if text:
        Path("verdicts.csv").write_text(text)
    made = invoke("split", photos, "--no-near", "--corrections", "verdicts.csv", "--out", "splits/new.csv")
    assert made.code == code
    assert message in made.err
    assert not Path("splits/new.csv").exists()


def test_a_class_keeps_training_and_validation_images(photos: Path, invoke) -> None:
    lines = [f"{path.relative_to(photos).as_posix()},drop\n" for path in sorted(photos.glob("class2/*"))]
    Path("verdicts.csv").write_text("path,verdict\n" + "".join(lines))
    made = invoke("split", photos, "--no-near", "--corrections", "verdicts.csv", "--out", "splits/new.csv")
    assert made.code == 1
    assert "verdicts.csv leaves no train images of class 'class2'" in made.err


def test_the_confident_joint_counts_off_diagonal_images() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.45, 0.55]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    # mean probability of label 0 over its images: 0.6; of label 1: 0.75. The last image reaches neither.
    errors, estimated = confident_errors(probabilities, labels)
    assert errors.tolist() == [False, False, True, False, False, False]
    assert estimated == 1
    assert label_margin(probabilities, labels).argmin() == 2


def test_a_label_that_is_the_most_probable_class_is_not_listed() -> None:
    # mean probability of label 1 over its images: 0.3. The first image is above it, but not above 0.75, that of label 0.
    probabilities = np.array([[0.6, 0.4], [0.9, 0.1], [0.75, 0.25], [0.7, 0.3]])
    labels = np.array([0, 0, 0, 1])
    errors, estimated = confident_errors(probabilities, labels)
    assert errors.tolist() == [False] * 4 and estimated == 1


def test_an_outlier_is_far_from_the_images_of_other_groups() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [rng.normal((10, 0, 0), 0.1, (20, 3)), rng.normal((0, 10, 0), 0.1, (20, 3)), [[0, 0, 9.0]] * 2]
    )
    groups = np.array([*range(40), 40, 40])  # the last two are copies of one image
    distance = neighbor_distance(values.astype(np.float32), groups, np.ones(42, bool))
    assert set(distance.argsort()[-2:].tolist()) == {40, 41}
    assert distance[40] > 3 * distance[:40].max()


def test_groups_are_in_one_fold() -> None:
    labels, groups = np.arange(60) % 3, np.repeat(np.arange(20), 3)
    folds = fold_numbers(labels, groups, seed=0)
    assert len(np.unique(folds)) == 5
    assert all(len(np.unique(folds[groups == group])) == 1 for group in range(20))


def test_verdicts_on_files_outside_the_split_are_counted(photos: Path, invoke) -> None:
    Path("verdicts.csv").write_text("path,verdict\nclass0/001.png,drop\nclass0/gone.png,drop\n")
    made = invoke("split", photos, "--no-near", "--corrections", "verdicts.csv", "--out", "splits/new.csv")
    assert made.code == 0 and "1 verdict for files that are not images of the split" in made.err + made.out


def test_a_class_with_the_name_of_a_verdict_is_ambiguous(tmp_path: Path, invoke) -> None:
    root = make_images(tmp_path / "photos", each=6)
    (root / "class0").rename(root / "ok")
    Path("verdicts.csv").write_text("path,verdict\nclass1/001.png,ok\n")
    made = invoke("split", root, "--no-near", "--corrections", "verdicts.csv")
    assert made.code == 1 and "'ok' is a verdict and a class" in made.err and "rename the class" in made.err


def test_a_subset_without_images_cannot_be_audited(photos: Path, invoke) -> None:
    assert invoke("split", photos, "--no-near", "--test-fraction", "0", "--out", "splits/no-test.csv").code == 0
    found = invoke("audit", "splits/no-test.csv", *NETWORK, "--subset", "test")
    assert found.code == 2 and "no-test.csv has no test images" in found.err
