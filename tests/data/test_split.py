import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_groups.assignment import assign_groups
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from inat_ft.data.manifest import Manifest, find_manifest, read_manifest, write_manifest
from inat_ft.data.sources.base import ImageList, ReadOptions, Reason, find_images
from inat_ft.data.split import SplitOptions, make_manifest
from inat_ft.errors import DataError, UsageError
from inat_ft.images.scan import Scan, scan
from tests.conftest import make_images


def split(data: Path, options: SplitOptions | None = None, out: str = "m.csv", classes_from: str | None = None):
    images = find_images(data, options=ReadOptions(classes_from=classes_from))
    options = options or SplitOptions()
    scanned = scan(images.root, images.paths, 10**8, 2, options.near, lambda done, total: None)
    if options.group_by:
        assign_groups(images, options.group_by)
    return make_manifest(images, scanned, options, Path(out))


def make_empty(folder: Path, files: tuple[str, ...]) -> None:
    """Empty files and folders: sources do not read the files."""
    for name in files:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()


def unlike_images(labels: list[str], groups: list[str]) -> tuple[ImageList, Scan]:
    """A scan without pixels: every file is usable and differs from every other."""
    images = ImageList(Path("/data"), "class folders")
    for number, label in enumerate(labels):
        images.add(f"{label}/{number:06d}.jpg", label, group=groups[number] if groups else "")
    hashes = [f"{number:064x}" for number in range(len(labels))]
    return images, Scan(hashes, [""] * len(labels))


class TestStratification:
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.integers(3, 60), min_size=2, max_size=6),
        st.floats(0.05, 0.5),
        st.floats(0.0, 0.4),
        st.integers(0, 10**6),
    )
    def test_fractions_of_each_class_are_exact_to_one_image(self, sizes, val, test, seed) -> None:
        labels = [f"c{label}" for label, size in enumerate(sizes) for _ in range(size)]
        files, scanned = unlike_images(labels, [])
        options = SplitOptions(val_fraction=val, test_fraction=test, seed=seed, near=False)
        manifest, _ = make_manifest(files, scanned, options, Path("m.csv"))
        for size, counts in zip(sizes, manifest.counts().values(), strict=True):
            assert sum(counts.values()) == size
            assert counts["train"] >= 1 and counts["val"] >= 1
            if test:
                assert abs(counts["test"] - test * size) <= 1
            else:
                assert counts["test"] == 0
            assert abs(counts["val"] - val * (size - counts["test"])) <= 1

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=40, max_size=150), st.integers(0, 99))
    def test_groups_stay_together(self, rows, seed) -> None:
        labels = [f"c{label}" for label, _ in rows] + [f"c{label}" for label in range(4) for _ in range(5)]
        groups = [f"g{group}" for _, group in rows] + [""] * 20
        files, scanned = unlike_images(labels, groups)
        manifest, _ = make_manifest(files, scanned, SplitOptions(seed=seed, near=False), Path("m.csv"))
        by_path = dict(zip(files.paths, groups, strict=True))
        sides: dict[str, set[int]] = {}
        for path, subset in zip(manifest.paths, manifest.subsets, strict=True):
            if by_path[path]:
                sides.setdefault(by_path[path], set()).add(int(subset))
        assert all(len(side) == 1 for side in sides.values())

    def test_single_images_remain_for_the_subsets_without_the_group(self) -> None:
        labels, groups = ["a"] * 10 + ["b"] * 10, ["burst"] * 8 + [""] * 12
        for seed in range(10):
            files, scanned = unlike_images(labels, groups)
            options = SplitOptions(test_fraction=0.2, seed=seed, near=False)
            manifest, _ = make_manifest(files, scanned, options, Path("m.csv"))
            assert manifest.counts()["a"] == {"train": 8, "val": 1, "test": 1}

    def test_a_class_with_one_image_is_an_error_that_names_it(self) -> None:
        files, scanned = unlike_images(["a", "a", "a", "lonely"], [])
        with pytest.raises(DataError, match=r"too few images in 'lonely' \(1\)"):
            make_manifest(files, scanned, SplitOptions(near=False), Path("m.csv"))


class TestDeterminism:
    def test_the_manifest_does_not_depend_on_the_order_of_the_directory(self, tmp_path: Path) -> None:
        source = make_images(tmp_path / "a" / "photos")
        files = sorted(source.rglob("*.png"))
        random.Random(3).shuffle(files)
        for file in files:  # created in another order, at another time, in another place
            copy = tmp_path / "b" / "photos" / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        texts = []
        for place in ("a", "b"):
            manifest, _ = split(tmp_path / place / "photos", out=str(tmp_path / place / "splits" / "m.csv"))
            write_manifest(manifest)
            texts.append(manifest.path.read_bytes())
        assert texts[0] == texts[1]

    def test_another_seed_gives_another_split(self, images: Path) -> None:
        first, second = (split(images, SplitOptions(seed=seed))[0] for seed in (0, 1))
        assert list(first.paths) == list(second.paths)
        assert (first.subsets != second.subsets).any() and first.fingerprint != second.fingerprint


class TestManifest:
    def test_it_is_read_back_unchanged(self, images: Path) -> None:
        manifest, _ = split(images, SplitOptions(test_fraction=0.2))
        assert write_manifest(manifest)
        again = read_manifest(manifest.path)
        assert list(again.paths) == manifest.paths and list(again.hashes) == manifest.hashes
        assert again.root == images.resolve() and again.classes == manifest.classes
        assert (again.labels == manifest.labels).all() and (again.subsets == manifest.subsets).all()
        assert again.fingerprint == manifest.fingerprint

    def test_a_different_one_is_replaced_only_with_force(self, images: Path) -> None:
        first, other = (split(images, SplitOptions(seed=seed))[0] for seed in (0, 1))
        assert write_manifest(first) and not write_manifest(first)
        with pytest.raises(UsageError, match="already contains a different split"):
            write_manifest(other)
        assert write_manifest(other, force=True)

    def test_names_with_commas_quotes_and_umlauts_are_kept(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "photos", classes=2, each=5)
        shutil.move(data / "class0", data / 'Gänse, "graue"')
        manifest, _ = split(data)
        write_manifest(manifest)
        assert read_manifest(manifest.path).classes == ('Gänse, "graue"', "class1")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda text: "", "is not a manifest"),
            (lambda text: "# inat-ft manifest " + "[" * 100_000, "damaged"),
            (lambda text: text.replace(",val,", ",train,", 1), "edited or damaged"),
            (lambda text: text[: len(text) // 2], "damaged"),
            (lambda text: text.replace('"schema": 1', '"schema": 9'), "schema 9"),
            (lambda text: text.replace('"classes": [', '"classes": [3, '), "damaged"),
            (lambda text: text.replace('"classes": [', '"classes": ["class1", '), "a class is listed twice"),
            (lambda text: text.replace('"seed": 0', '"seed": [0]'), "damaged"),
            (lambda text: text.replace('"seed": 0', '"seed": 0, "exclude": 5'), "damaged"),
            (lambda text: text.replace('"seed": 0', '"seed": 0, "csv": 5'), "damaged"),
            (lambda text: text.replace('"left_out": []', '"left_out": [["a"]]'), "damaged"),
            (lambda text: text.replace('"left_out": []', '"left_out": [["a", "b", "c"]]'), "damaged"),
        ],
    )
    def test_a_damaged_one_is_refused(self, images: Path, change, message: str) -> None:
        manifest, _ = split(images)
        write_manifest(manifest)
        manifest.path.write_text(change(manifest.path.read_text()))
        with pytest.raises(DataError, match=message):
            read_manifest(manifest.path)

    def test_the_newest_is_found_and_a_missing_one_is_an_error(self, images: Path) -> None:
        with pytest.raises(UsageError, match="no manifest in") as caught:
            find_manifest()
        assert "inat-ft split" in caught.value.hint
        for seed in (0, 1):
            manifest = split(images, SplitOptions(seed=seed), out=f"splits/{seed}.csv")[0]
            write_manifest(manifest)
            os.utime(manifest.path, (100 + seed, 100 + seed))
        assert find_manifest().name == "1.csv"

    def test_the_fingerprint_of_a_subset_does_not_depend_on_paths(self, images: Path, tmp_path: Path) -> None:
        first, _ = split(images)
        moved = tmp_path / "moved"
        shutil.copytree(images, moved)
        for file in moved.rglob("*.png"):
            file.rename(file.with_name(f"x{file.name}"))
        second = Manifest(
            **{**first.__dict__, "paths": [path.replace("/", "/x") for path in first.paths], "fingerprint": ""}
        )
        assert second.subset_fingerprint("val") == first.subset_fingerprint("val")
        assert second.fingerprint != first.fingerprint


class TestLayouts:
    @pytest.mark.parametrize(
        ("train", "val"), [("train", "val"), ("train_mini", "val"), ("2021_train_mini", "2021_valid")]
    )
    def test_the_layout_of_inaturalist_keeps_its_test_set(self, tmp_path: Path, train: str, val: str) -> None:
        root = tmp_path / "inaturalist"
        make_images(root / train, each=10, seed=1)
        make_images(root / val, each=4, seed=2)
        (root / ".DS_Store").write_bytes(b"x")
        (root / train / "class0" / ".DS_Store").write_bytes(b"x")
        (root / train / "class0" / "Thumbs.db").write_bytes(b"x")
        manifest, _ = split(root)
        assert manifest.counts() == {f"class{n}": {"train": 8, "val": 2, "test": 4} for n in range(3)}
        assert all(path.startswith(f"{val}/") for path in np.array(manifest.paths)[manifest.rows("test")])
        assert manifest.left_out == []

    def test_three_given_subsets_are_kept(self, tmp_path: Path) -> None:
        for seed, (name, each) in enumerate((("train", 6), ("val", 3), ("test", 2))):
            make_images(tmp_path / "d" / name, classes=2, each=each, seed=seed)
        manifest, _ = split(tmp_path / "d")
        assert manifest.counts()["class0"] == {"train": 6, "val": 3, "test": 2}

    def test_nested_folders_belong_to_their_class(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=6)
        (data / "class0" / "more" / "deep").mkdir(parents=True)
        shutil.move(data / "class0" / "000.png", data / "class0" / "more" / "deep" / "0.png")
        assert sum(split(data)[0].counts()["class0"].values()) == 6

    def test_a_csv_names_images_labels_and_subsets(self, tmp_path: Path) -> None:
        make_images(tmp_path / "d", classes=2, each=6)
        lines = [f"d/class{c}/{n:03d}.png,kind {c},{'test' if n < 2 else ''}" for c in range(2) for n in range(6)]
        (tmp_path / "list.csv").write_text("path,label,subset\n" + "\n".join(lines) + "\n  \n")
        manifest, _ = split(tmp_path / "list.csv")
        assert manifest.counts()["kind 1"] == {"train": 3, "val": 1, "test": 2}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a,b\n1,2", "requires the columns path and label"),
            ("path,label\n../x,a", "is outside"),
            ("path,label\n/x,a", "/x is absolute"),
            ("path,label\nx,", "line 2"),
            ("path,label\nx,a\nx,b", "line 3: x is already in line 2"),
            ("path,label\n \n", "lists no images"),
            ("path;label\nx;a", "requires the columns path and label; it has path;label"),
            ("path,label\n\xe4,a", "it is not UTF-8"),
        ],
    )
    def test_an_invalid_csv_is_refused(self, tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / "list.csv").write_text(text, encoding="latin-1")
        with pytest.raises(DataError, match=message) as caught:
            find_images(tmp_path / "list.csv")
        assert caught.value.hint or message == "line 2"

    def test_classes_by_taxon(self, tmp_path: Path) -> None:
        for number, taxa in enumerate(
            ("Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_corax", "Plantae_A_B_C_D_E_f")
        ):
            folder = make_images(tmp_path / f"x{number}", classes=1, each=5, seed=number) / "class0"
            (tmp_path / "d").mkdir(exist_ok=True)
            shutil.move(folder, tmp_path / "d" / f"{number:05d}_{taxa}")
        assert split(tmp_path / "d", classes_from="kingdom")[0].classes == ("Animalia", "Plantae")
        assert split(tmp_path / "d", classes_from="species")[0].classes == ("Corvus corax", "E f")

    def test_taxa_with_the_same_name_are_distinguished(self, tmp_path: Path) -> None:
        taxa = (
            "Animalia_Chordata_Aves_Suliformes_Sulidae_Morus_bassanus",
            "Plantae_Tracheophyta_Magnoliopsida_Rosales_Moraceae_Morus_alba",
            "Plantae_Tracheophyta_Magnoliopsida_Rosales_Moraceae_Morus_nigra",
            "Plantae_Tracheophyta_Magnoliopsida_Rosales_Moraceae_Ficus_carica",
        )
        for number, name in enumerate(taxa):
            folder = make_images(tmp_path / f"x{number}", classes=1, each=5, seed=number) / "class0"
            (tmp_path / "d").mkdir(exist_ok=True)
            shutil.move(folder, tmp_path / "d" / f"{number:05d}_{name}")
        manifest = split(tmp_path / "d", classes_from="genus")[0]
        assert manifest.classes == ("Ficus", "Morus (Moraceae)", "Morus (Sulidae)")
        assert np.bincount(manifest.labels).tolist() == [5, 10, 5]

    @pytest.mark.parametrize("make", ["missing", "empty", "flat", "file"])
    def test_a_location_without_class_folders_is_named_in_the_error(self, tmp_path: Path, make: str) -> None:
        data = tmp_path / "d"
        if make == "file":
            data.write_text("x")
        elif make != "missing":
            data.mkdir()
        if make == "flat":
            Image.new("RGB", (8, 8)).save(data / "a.png")
        with pytest.raises((UsageError, DataError), match=str(data)):
            find_images(data)

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (("a/",), "d has no class folders that contain files"),
            (("train/", "val/a/1.png"), "train has no class folders"),
            (("train/a.png", "val/a/1.png"), "train has no class folders"),
            (("val/a/1.png", "test/a/1.png"), "d has no train folder, only test and val"),
            (("valid/a/1.png",), "d has no train folder, only valid"),
            (("Train/a/1.png", "training/a/1.png"), "d has two folders for train: Train and training"),
            (("set/train/a/1.png", "set/val/a/1.png"), "d contains a single data set: set"),
        ],
    )
    def test_a_layout_without_training_classes_is_refused(
        self, tmp_path: Path, files: tuple[str, ...], says: str
    ) -> None:
        make_empty(tmp_path / "d", files)
        with pytest.raises((DataError, UsageError), match=f"{says}$") as caught:
            find_images(tmp_path / "d")
        assert caught.value.hint

    def test_a_subset_folder_that_is_a_link_is_refused(self, tmp_path: Path) -> None:
        make_empty(tmp_path / "d", ("train/a/1.png",))
        make_empty(tmp_path / "other", ("a/1.png",))
        (tmp_path / "d" / "val").symlink_to(tmp_path / "other")
        with pytest.raises(DataError, match="val is a link out of the folder: links are not followed"):
            find_images(tmp_path / "d")

    @pytest.mark.parametrize(
        ("files", "classes"),
        [
            (("train/1.png", "bus/1.png"), {"train", "bus"}),  # classes of vehicles
            (("train/1.png",), {"train"}),
            (("set/train/1.png", "set/bus/1.png"), {"set"}),
            (("train/a/1.png",), {"a"}),
        ],
    )
    def test_a_class_can_be_named_like_a_subset(
        self, tmp_path: Path, files: tuple[str, ...], classes: set[str]
    ) -> None:
        make_empty(tmp_path / "d", files)
        assert {row.label for row in find_images(tmp_path / "d").rows} == classes

    def test_what_is_beside_the_classes_is_left_out_with_a_reason(self, tmp_path: Path) -> None:
        make_empty(
            tmp_path / "d", ("train/a/1.png", "val/a/1.png", "more/a/1.png", "2.png", "train/3.JPG", "notes.txt")
        )
        (tmp_path / "d" / "train" / "b").symlink_to(tmp_path / "d" / "train" / "a")
        found = find_images(tmp_path / "d")
        assert [(row.path, row.subset) for row in found.rows] == [("train/a/1.png", ""), ("val/a/1.png", "test")]
        assert {left.path: left.text for left in found.left_out} == {
            "2.png": "outside the class folders",
            "more": "a folder beside train and val",
            "train/3.JPG": "outside the class folders",
            "train/b": "a link to a folder",
        }

    @pytest.mark.parametrize("link", [b"l\xff", "link"])
    def test_links_and_names_that_are_not_utf8_are_left_out_inside_a_class(
        self, tmp_path: Path, link: str | bytes
    ) -> None:
        make_empty(tmp_path / "d", ("a/1.png",))
        try:
            os.symlink(b"nowhere", os.fsencode(tmp_path / "d" / "a") + b"/" + os.fsencode(link))
        except OSError:
            pytest.skip("this file system has only UTF-8 names")
        found = find_images(tmp_path / "d")
        assert [row.path for row in found.rows] == ["a/1.png"]
        assert [left.text for left in found.left_out] == [
            "a broken link" if link == "link" else "the name is not UTF-8"
        ]

    def test_a_folder_that_cannot_be_listed_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        (tmp_path / "d").mkdir()
        monkeypatch.setattr(Path, "iterdir", refuse)
        with pytest.raises(DataError, match=r"cannot read the folder .*/d: Permission denied"):
            find_images(tmp_path / "d")

    def test_taxa_that_are_not_in_the_folder_names_are_reported(self, tmp_path: Path) -> None:
        make_empty(tmp_path / "d", ("a/1.png",))
        with pytest.raises(DataError, match=r"--classes-from genus: no folder of a/1\.png is named like"):
            find_images(tmp_path / "d", options=ReadOptions(classes_from="genus"))

    def test_links_out_of_the_folder_are_not_followed(self, tmp_path: Path) -> None:
        outside = make_images(tmp_path / "outside", classes=1, each=3)
        data = make_images(tmp_path / "d", classes=2, each=5)
        (data / "class0" / "link.png").symlink_to(outside / "class0" / "000.png")
        (data / "class1" / "folder").symlink_to(outside / "class0")
        (data / "class1" / "inside.png").symlink_to(data / "class1" / "000.png")
        (data / "class1" / "loop.png").symlink_to(data / "class1" / "loop.png")
        (data / "class1" / "gone.png").symlink_to(data / "class1" / "nothing.png")
        manifest, _ = split(data)
        reasons = {left.path: left.text for left in manifest.left_out}
        assert reasons["class1/loop.png"] == reasons["class1/gone.png"] == "a broken link"
        rows = "".join(f"d/{path},{path[:6]}\n" for path in (*manifest.paths, "class1/loop.png"))
        (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
        assert [left.path for left in split(tmp_path / "list.csv")[0].left_out] == ["d/class1/loop.png"]
        assert reasons["class0/link.png"] == "a link out of the folder"
        assert "class1/folder" in reasons and "class1/inside.png" in manifest.paths


class TestCopies:
    def test_files_that_cannot_be_decoded_are_left_out_with_a_reason(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=6)
        (data / "class0" / "empty.jpg").write_bytes(b"")
        (data / "class0" / "text.jpg").write_text("hello")
        whole = (data / "class1" / "000.png").read_bytes()
        (data / "class1" / "cut.png").write_bytes(whole[: len(whole) // 2])
        reasons = {left.path: left.text for left in split(data)[0].left_out}
        assert set(reasons) == {"class0/empty.jpg", "class0/text.jpg", "class1/cut.png"}
        assert reasons["class0/empty.jpg"] == "the file is empty" and reasons["class0/text.jpg"] == "not an image"

    def test_equal_files_stay_in_one_subset(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=12)
        for number in range(6):
            shutil.copy(data / "class0" / f"{number:03d}.png", data / "class0" / f"copy{number}.png")
        for seed in range(5):
            manifest, findings = split(data, SplitOptions(seed=seed, near=False))
            assert len(findings.exact_groups) == 6
            side = dict(zip(manifest.paths, manifest.subsets.tolist(), strict=True))
            assert all(side[f"class0/{n:03d}.png"] == side[f"class0/copy{n}.png"] for n in range(6))

    def test_near_duplicates_stay_in_one_subset(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=10)
        photo = Image.fromarray(load_sample_images().images[1])
        for number in range(4):
            crop = photo.crop((100 * number, 50 * number, 100 * number + 250, 50 * number + 250))
            crop.save(data / "class0" / f"{number:03d}.png")
            changed = ImageEnhance.Brightness(crop.resize((190, 190))).enhance(1.05)
            changed.save(data / "class0" / f"again{number}.jpg", quality=80)
        manifest, findings = split(data)
        assert sorted(map(sorted, findings.near_groups), key=str) == [
            [f"class0/{n:03d}.png", f"class0/again{n}.jpg"] for n in range(4)
        ]
        side = dict(zip(manifest.paths, manifest.subsets.tolist(), strict=True))
        assert all(side[f"class0/{n:03d}.png"] == side[f"class0/again{n}.jpg"] for n in range(4))

    def test_copies_of_test_images_are_left_out_of_training(self, tmp_path: Path) -> None:
        root = tmp_path / "d"
        make_images(root / "train", each=10, seed=1)
        make_images(root / "test", each=4, seed=2)
        shutil.copy(root / "test" / "class0" / "000.png", root / "train" / "class0" / "leak.png")
        manifest, findings = split(root)
        assert findings.leaked == [("train/class0/leak.png", "test/class0/000.png")]
        assert "train/class0/leak.png" not in manifest.paths
        (left,) = manifest.left_out
        assert left.path == "train/class0/leak.png" and left.reason is Reason.COPY
        assert left.text.startswith("a copy of a test image")
        assert "train/class0/leak.png" in split(root, SplitOptions(leakage="keep"))[0].paths
        with pytest.raises(DataError, match="copies of test images"):
            split(root, SplitOptions(leakage="error"))

    def test_a_test_folder_with_the_training_images_is_refused(self, tmp_path: Path) -> None:
        make_images(tmp_path / "d" / "train", each=5)
        shutil.copytree(tmp_path / "d" / "train", tmp_path / "d" / "val")
        with pytest.raises(DataError, match="training images are also in the test set"):
            split(tmp_path / "d")

    def test_a_file_with_two_labels_is_left_out_and_listed(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=8)
        shutil.copy(data / "class0" / "000.png", data / "class1" / "same.png")
        manifest, findings = split(data)
        assert findings.conflicts == [["class0/000.png", "class1/same.png"]]
        assert not {"class0/000.png", "class1/same.png"} & set(manifest.paths)

    def test_a_class_emptied_by_label_conflicts_is_an_error(self, tmp_path: Path) -> None:
        data = make_images(tmp_path / "d", classes=2, each=8)
        shutil.copytree(data / "class0", data / "other")
        with pytest.raises(
            DataError,
            match=r"'class0', 'other' have no usable images: .*the same file has the labels class0 and other",
        ):
            split(data)

    def test_groups_by_name_and_by_csv(self, tmp_path: Path) -> None:
        images = find_images(make_images(tmp_path / "d", classes=1, each=4))
        (tmp_path / "g.csv").write_text("path,group\nclass0/001.png,x\nclass0/003.png,x\n")
        for group_by, groups in ((r"^(\d\d)", ["00"] * 4), (str(tmp_path / "g.csv"), ["", "x", "", "x"])):
            assign_groups(images, group_by)
            assert [row.group for row in images.rows] == groups
        for bad in ("(", "zzz", "missing.csv"):
            with pytest.raises(UsageError, match="--group-by"):
                assign_groups(images, bad)


def test_the_command_prints_a_table_and_json(cli, images: Path) -> None:
    ran = cli("split", images, "--test-fraction", "0.25", "--json")
    assert ran.code == 0
    assert ran.json["counts"]["class0"] == {"train": 12, "val": 3, "test": 5}
    assert Path(ran.json["manifest"]) == Path("splits/photos.csv")
    table = cli("split", images, "--test-fraction", "0.25")
    assert "class1      12     3      5    20" in table.out and "(unchanged)" in table.out
    other = cli("split", images)
    assert other.code == 2 and "--force" in other.err


def test_check_lists_missing_changed_and_new_files(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos")
    assert cli("split", data).code == 0
    assert cli("split", "--check", "splits/photos.csv").code == 0
    (data / "class0" / "000.png").unlink()
    Image.new("RGB", (9, 9)).save(data / "class1" / "001.png")
    Image.new("RGB", (9, 9)).save(data / "class2" / "new.png")
    ran = cli("split", "--check", "splits/photos.csv", "--json")
    assert ran.code == 1
    assert ran.json == {"missing": ["class0/000.png"], "changed": ["class1/001.png"], "new": ["class2/new.png"]}


@pytest.mark.parametrize("words", [["split"], ["split", "nowhere"], ["split", "photos", "--val-fraction", "2"]])
def test_wrong_usage_exits_with_code_2(cli, words: list[str]) -> None:
    ran = cli(*words)
    assert ran.code == 2 and "Traceback" not in ran.err and ran.out == ""


def test_a_very_long_path_is_shortened_in_the_message(cli) -> None:
    ran = cli("split", "a" * 5000)
    assert ran.code == 1 and "File name too long" in ran.err and len(ran.err) < 600


def test_strict_turns_an_unusable_file_into_an_error(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos")
    (data / "class0" / "bad.png").write_bytes(b"x")
    assert json.loads(cli("split", data, "--json").out)["left_out"] == [
        {"path": "class0/bad.png", "reason": "not an image"}
    ]
    ran = cli("split", data, "--strict", "--force")
    assert ran.code == 1 and "class0/bad.png (not an image)" in ran.err
