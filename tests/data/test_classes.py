"""Checks of classes before images are decoded, the default test set, and --exclude."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from inat_ft.data.classes import check_classes
from inat_ft.data.manifest import read_manifest
from inat_ft.data.sources.base import ImageList
from inat_ft.errors import DataError
from tests.conftest import make_images

NFC, NFD = (unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD"))


def listed(counts: dict[tuple[str, str], int]) -> ImageList:
    """A list with the given number of images of each (class, subset)."""
    files = ImageList(Path("/data"), "class folders")
    for (label, subset), count in counts.items():
        files.classes.add(label)
        for number in range(count):
            files.add(f"{subset or 'x'}/{label}/{number}.jpg", label, subset)
    return files


@pytest.fixture
def unscanned(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*given: object) -> None:
        raise AssertionError("images were decoded")

    monkeypatch.setattr("inat_ft.data.split.scan", scan)


class TestDefaultTestSet:
    def test_a_fifth_of_each_class_is_reserved_and_reported(self, invoke, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=2, each=20)
        ran = invoke("split", data, "--no-near")
        assert ran.code == 0, ran.err
        assert "test set: 20% of each class reserved by default" in ran.out and "--test-fraction 0" in ran.out
        manifest = read_manifest(Path("splits/photos.csv"))
        assert manifest.counts()["class0"] == {"train": 13, "val": 3, "test": 4}
        assert manifest.made["test_fraction"] == 0.2
        assert "next: inat-ft train --mode head\n" in ran.err

    def test_a_fraction_of_zero_reserves_none_and_the_output_mentions_eval(self, invoke, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=2, each=20)
        ran = invoke("split", data, "--no-near", "--test-fraction", "0", "--out", "other place/p.csv")
        assert ran.code == 0, ran.err
        assert "no test set" in ran.out and "inat-ft eval" in ran.out and "reserved by default" not in ran.out
        assert read_manifest(Path("other place/p.csv")).counts()["class0"] == {"train": 16, "val": 4, "test": 0}
        assert "next: inat-ft train --mode head --split 'other place/p.csv'\n" in ran.err

    def test_no_images_are_reserved_if_the_data_has_a_test_set(self, invoke, tmp_path: Path) -> None:
        make_images(tmp_path / "photos" / "train", classes=2, each=10, seed=1)
        make_images(tmp_path / "photos" / "test", classes=2, each=4, seed=2)
        ran = invoke("split", "photos", "--no-near", "--json")
        assert ran.json["counts"]["class0"] == {"train": 8, "val": 2, "test": 4} and ran.json["test_fraction"] == 0

    def test_no_images_are_reserved_if_a_csv_has_training_images(self, invoke, tmp_path: Path) -> None:
        make_images(tmp_path / "photos", classes=2, each=10)
        rows = [f"photos/class{c}/{n:03d}.png,c{c},{'train' if n < 6 else 'val'}" for c in range(2) for n in range(10)]
        Path("list.csv").write_text("\n".join(["path,label,subset", *rows]))
        ran = invoke("split", "list.csv", "--no-near")
        assert ran.code == 0 and "no test set" in ran.out


@pytest.mark.usefixtures("unscanned")
class TestBeforeTheScan:
    def test_an_empty_class_folder_is_named(self, invoke, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=2, each=10)
        (data / "#recycle").mkdir()
        ran = invoke("split", data)
        assert (
            ran.code == 1 and "class '#recycle' has no usable images" in ran.err and "--exclude '#recycle'" in ran.err
        )

    def test_a_single_class_is_an_error(self, invoke, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=1, each=10)
        ran = invoke("split", data)
        assert ran.code == 1 and "a single class, 'class0'" in ran.err
        outer = invoke("split", tmp_path / "photos" / "..", "--exclude", "cache")
        assert outer.code == 1 and "a single class, 'photos'" in outer.err and "inat-ft split " in outer.err

    @pytest.mark.parametrize(
        ("number", "words", "said"),
        [
            (2, (), "at least 3 images, 1 for training, 1 for validation, 1 for testing"),
            (1, ("--test-fraction", "0"), "at least 2 images, 1 for training, 1 for validation"),
        ],
    )
    def test_a_class_with_too_few_images_is_named_with_the_required_number(
        self, invoke, tmp_path: Path, number, words, said
    ):
        data = make_images(tmp_path / "photos", classes=2, each=10)
        shutil.copytree(make_images(tmp_path / "x", classes=1, each=number) / "class0", data / "rare\nbird")
        ran = invoke("split", data, *words)
        assert ran.code == 1 and rf"'rare\x0abird' ({number})" in ran.err and said in ran.err
        assert "--exclude" in ran.err and ("--test-fraction 0" in ran.err) is not words

    def test_a_class_only_in_the_test_set_is_named_with_the_similar_name(self, invoke, tmp_path: Path) -> None:
        make_images(tmp_path / "photos" / "train", classes=3, each=10, seed=1)
        make_images(tmp_path / "photos" / "val", classes=3, each=4, seed=2)
        (tmp_path / "photos" / "train" / "class0").rename(tmp_path / "photos" / "train" / NFC)
        (tmp_path / "photos" / "val" / "class0").rename(tmp_path / "photos" / "val" / NFD)
        ran = invoke("split", "photos")
        assert ran.code == 1 and "images only in the test set, none for training" in ran.err
        assert "differ only in Unicode form" in ran.err and "Ka\\u0308fer" in ran.err and "K\\xe4fer" in ran.err


def test_a_class_that_loses_its_training_images_to_a_group_is_named_with_one_of_them(invoke, tmp_path: Path) -> None:
    make_images(tmp_path / "photos" / "train", classes=2, each=4, seed=1)
    make_images(tmp_path / "photos" / "test", classes=2, each=4, seed=2)
    for file in (tmp_path / "photos").rglob("class0/*"):
        file.rename(file.with_name(f"site1_{file.name}"))
    ran = invoke("split", "photos", "--group-by", "site[0-9]")
    assert ran.code == 1 and "images only in the test set, none for training: train/class0/site1_" in ran.err
    assert "in one group with a test image" in ran.err and "--leakage keep" in ran.err
    kept = invoke("split", "photos", "--group-by", "site[0-9]", "--leakage", "keep")
    assert kept.code == 1 and "class 'class0' has too few images or groups (8 in 1)" in kept.err


def test_similar_names_and_small_classes_cause_warnings() -> None:
    warnings = check_classes(
        listed({("Fox", ""): 20, ("fox", ""): 9, (NFC, ""): 20, (NFD, ""): 20, ("hen", ""): 20}), 0.2
    )
    assert any("'Fox' and 'fox' differ only in case" in warning for warning in warnings)
    assert any("differ only in Unicode form" in warning and "u0308" in warning for warning in warnings)
    assert any("'fox' (9): fewer than 10 images" in warning for warning in warnings)
    assert len(warnings) == 3
    assert check_classes(listed({("fox", ""): 20, ("hen", ""): 20}), 0.2) == []


@pytest.mark.parametrize(
    ("counts", "test_fraction", "said"),
    [
        ({("a", "train"): 5, ("b", "train"): 1, ("b", "test"): 4, ("a", "test"): 4}, 0.0, "'b' (1)"),
        ({("a", "train"): 5, ("a", "val"): 5, ("b", "train"): 5}, 0.0, "no images in the given validation set"),
        ({("a", "train"): 5, ("a", "val"): 5, ("b", "val"): 5}, 0.0, "images only in the validation set"),
        ({("a", "train"): 5, ("a", ""): 5, ("b", "train"): 5}, 0.0, "'b' (0)"),
    ],
)
def test_given_subsets_with_too_few_images_of_a_class_are_refused(counts, test_fraction: float, said: str) -> None:
    with pytest.raises(DataError) as caught:
        check_classes(listed(counts), test_fraction)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "counts",
    [
        {(label, subset): 1 for label in "ab" for subset in ("train", "val", "test")},
        {(label, subset): 1 for label in "ab" for subset in ("train", "")},
        {("a", ""): 3, ("b", ""): 3},
        {("a", ""): 3, ("b", ""): 3, ("a", "test"): 1},
    ],
)
def test_classes_with_the_minimum_number_of_images_are_accepted(counts) -> None:
    check_classes(listed(counts), 0.0)


class TestExclude:
    def test_excluded_files_and_folders_are_also_excluded_in_a_check(self, invoke, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=3, each=10)
        (data / "#recycle").mkdir()
        shutil.copytree(data / "class0", data / "class1" / "[raw] shots")
        (data / "class0" / "000.png").rename(data / "class0" / "000_small.png")
        patterns = ("#recycle", "class2", "[raw] shots", "class0/*_small.png", "nothing*")
        words = [word for pattern in patterns for word in ("--exclude", pattern)]
        ran = invoke("split", data, "--no-near", *words)
        assert ran.code == 0, ran.err
        assert "--exclude 'nothing*' does not match" in ran.err
        manifest = read_manifest(Path("splits/photos.csv"))
        assert manifest.classes == ("class0", "class1") and len(manifest.paths) == 19
        assert [left.path for left in manifest.left_out] == [
            "#recycle",
            "class0/000_small.png",
            "class1/[raw] shots",
            "class2",
        ]
        assert invoke("split", "--check", "splits/photos.csv").code == 0
        shutil.copy(data / "class0" / "001.png", data / "class0" / "new.png")
        assert invoke("split", "--check", "splits/photos.csv", "--json").json["new"] == ["class0/new.png"]

    def test_rows_of_a_csv_are_excluded_by_their_folders(self, invoke, tmp_path: Path) -> None:
        make_images(tmp_path / "photos", classes=3, each=10)
        rows = [f"photos/class{c}/{n:03d}.png,c{c}" for c in range(3) for n in range(10)]
        Path("list.csv").write_text("\n".join(["path,label", *rows]))
        ran = invoke("split", "list.csv", "--no-near", "--exclude", "class2", "--json")
        assert ran.code == 0, ran.err
        assert ran.json["classes"] == ["c0", "c1"]
        assert [left["path"] for left in ran.json["left_out"]] == ["photos/class2"]
