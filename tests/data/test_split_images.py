"""`split_images`: its defaults, its result, what it warns about and what it refuses."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from inat_ft.data.split import SplitOptions, split_images
from inat_ft.errors import DataError, UsageError
from tests.conftest import make_images


@pytest.fixture
def photos() -> Path:
    return make_images(Path("photos"), classes=2, each=10, size=16)


def test_defaults_and_result(photos: Path) -> None:
    assert (SplitOptions().val_fraction, SplitOptions().test_fraction, SplitOptions().strict) == (0.2, None, False)
    result = split_images(photos, options=SplitOptions(near=False))
    assert result.path == result.manifest.path == Path("splits/photos.csv") and str(Path(result)) == "splits/photos.csv"
    assert result.is_new and result.default_test_set and result.warnings == ()
    assert str(result) == f"{result.table}\nmanifest: splits/photos.csv"
    shown = result.to_dict()
    assert shown["counts"]["class0"] == {"train": 6, "val": 2, "test": 2} and shown["test_fraction"] == 0.2
    assert (shown["imbalance"], shown["classes_without_test"], shown["seed"]) == (1.0, [], 0)
    assert result.manifest.groups == [""] * 20
    again = split_images(photos, options=SplitOptions(near=False, test_fraction=0.2))
    assert not again.is_new and not again.default_test_set
    with pytest.raises(UsageError, match="already contains a different split"):
        split_images(photos, options=SplitOptions(near=False, seed=1))
    assert split_images(photos, options=SplitOptions(near=False, seed=1), force=True).is_new


def test_no_test_set(photos: Path) -> None:
    result = split_images(photos, options=SplitOptions(near=False, test_fraction=0.0))
    assert not result.default_test_set and result.to_dict()["test_fraction"] == 0.0
    assert result.to_dict()["counts"]["class1"] == {"train": 8, "val": 2, "test": 0}
    assert result.findings.classes_without_test == []


def test_imbalance_and_copies(photos: Path) -> None:
    for number in range(3, 10):
        (photos / f"class1/{number:03d}.png").unlink()
    Image.open(photos / "class0/000.png").save(photos / "class0/copy.png")
    found = split_images(photos, options=SplitOptions(near=False))
    assert found.imbalance[:2] == ("class0", "class1") and found.imbalance.ratio >= 6
    groups = dict(zip(found.manifest.paths, found.manifest.groups, strict=True))
    assert groups.pop("class0/copy.png") == groups.pop("class0/000.png") != "" and set(groups.values()) == {""}


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.9, 0.2), (1.0, None)])
def test_fractions_that_leave_no_training_images(photos: Path, val: float, test: float | None) -> None:
    with pytest.raises(UsageError, match="leave no training images"):
        split_images(photos, options=SplitOptions(val_fraction=val, test_fraction=test))
    split_images(photos, options=SplitOptions(val_fraction=0.5, test_fraction=0.4, near=False))


def test_a_given_test_set(photos: Path) -> None:
    make_images(Path("set/train"), classes=2, each=6, size=16, seed=1)
    make_images(Path("set/test"), classes=2, each=3, size=16, seed=2)
    result = split_images(Path("set"), options=SplitOptions(near=False))
    assert not result.default_test_set and result.to_dict()["counts"]["class0"] == {"train": 5, "val": 1, "test": 3}
    assert result.to_dict()["test_fraction"] == 0.0
    with pytest.raises(UsageError, match="already has a test set"):
        split_images(Path("set"), options=SplitOptions(test_fraction=0.2))


def test_a_test_set_cannot_be_taken_from_given_subsets(photos: Path) -> None:
    files = [f"photos/{file.parent.name}/{file.name},{file.parent.name}" for file in sorted(photos.glob("*/*"))]
    rows = [f"{row},{'val' if number % 5 == 0 else 'train'}" for number, row in enumerate(files)]
    Path("list.csv").write_text("\n".join(["path,label,subset", *rows]))
    with pytest.raises(UsageError, match=r"every image of .+ has a given subset"):
        split_images(Path("list.csv"), options=SplitOptions(test_fraction=0.2))
    found = split_images(Path("list.csv"), options=SplitOptions(near=False)).to_dict()["counts"]
    assert found["class0"] == {"train": 8, "val": 2, "test": 0}


def test_a_class_without_test_images_is_listed() -> None:
    make_images(Path("set/train"), classes=2, each=6, size=16, seed=1)
    make_images(Path("set/test"), classes=1, each=3, size=16, seed=2)
    result = split_images(Path("set"), options=SplitOptions(near=False))
    assert result.to_dict()["classes_without_test"] == ["class1"]


def test_a_list_of_images_is_not_replaced(photos: Path) -> None:
    with Path("list.csv").open("w", newline="") as out:
        rows = [(f"photos/{file.parent.name}/{file.name}", file.parent.name) for file in sorted(photos.glob("*/*"))]
        csv.writer(out).writerows([("path", "label"), *rows])
    with pytest.raises(UsageError, match=r"--out list\.csv would replace the list of images"):
        split_images(Path("list.csv"), Path("list.csv"))
    assert split_images(Path("list.csv"), options=SplitOptions(near=False)).path == Path("splits/list.csv")


def test_patterns_that_match_nothing_are_named(photos: Path) -> None:
    warned: list[str] = []
    Image.open(photos / "class0/000.png").save(photos / "class0/x.png")
    options = SplitOptions(near=False, exclude=("class0/x*", "nothing*"))
    result = split_images(photos, options=options, warn=warned.append)
    assert warned == list(result.warnings) == ["--exclude 'nothing*' does not match any file or folder"]
    split_images(photos, Path("strict.csv"), SplitOptions(near=False, exclude=("class0/x.png",), strict=True))


def test_unusable_files(photos: Path) -> None:
    for number in range(7):
        (photos / f"class0/bad{number}.png").write_bytes(b"\x89PNG")
    assert len(split_images(photos, options=SplitOptions(near=False)).to_dict()["left_out"]) == 7
    with pytest.raises(DataError, match=r"7 files are not usable images: class0/bad0\.png .*\n(.*\n){4}\.\.\.$"):
        split_images(photos, Path("strict.csv"), SplitOptions(near=False, strict=True))
    for number in (5, 6):
        (photos / f"class0/bad{number}.png").unlink()
    with pytest.raises(DataError, match=r"5 files are not usable images") as caught:
        split_images(photos, Path("strict.csv"), SplitOptions(near=False, strict=True))
    assert not caught.value.message.endswith("...")
    with pytest.raises(DataError, match=r"none of the 25 files in .* is a usable image") as caught:
        split_images(photos, Path("strict.csv"), SplitOptions(near=False, max_pixels=10))
    assert "--max-pixels" in caught.value.hint


def test_a_folder_without_usable_images() -> None:
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "b/3"):
        Path("bad", name).parent.mkdir(parents=True, exist_ok=True)
        Path("bad", f"{name}.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"none of the 6 files in .*bad is a usable image: a/1\.png") as caught:
        split_images(Path("bad"))
    assert caught.value.hint == "check that the folder contains images"


def test_a_class_with_too_few_images_for_a_test_set_is_refused_before_the_scan(photos: Path) -> None:
    for number in range(2, 10):
        (photos / f"class1/{number:03d}.png").unlink()

    def scanning(*_: object) -> None:
        raise AssertionError("the images were scanned")

    with pytest.raises(DataError, match="'class1'"):
        split_images(photos, options=SplitOptions(near=False), progress=scanning)
    assert split_images(photos, options=SplitOptions(near=False, test_fraction=0.0)).is_new
