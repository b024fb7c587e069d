import errno
import os
import shutil
from pathlib import Path

import pytest
from inat_ft_groups.assignment import assign_groups
from inat_ft_image_folder.image_folder import ImageFolder

from inat_ft.data.manifest import read_manifest
from inat_ft.data.sources import ImageList, Source
from inat_ft.data.sources.base import ReadOptions, find_images
from inat_ft.data.sources.csv_file import CsvFile
from inat_ft.data.split import SplitOptions, make_manifest
from inat_ft.errors import DataError, PluginError, UsageError
from inat_ft.images.scan import scan
from inat_ft.testing import check_source
from tests.conftest import make_images


def listed(data: Path, rows: list[str], header: str = "path,label,subset") -> Path:
    file = data.parent / "list.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_a_manifest_inside_the_data_is_not_a_class(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    for words in (("--out", data / "class0" / "m.csv"), ("--out", data / "splits" / "m.csv", "--seed", "1")):
        for _ in range(2):  # the second time the manifest is there, and still no part of the data
            ran = cli("split", data, *words, "--force", "--json")
            assert ran.json["counts"]["class0"] == {"train": 4, "val": 1, "test": 1}
            assert "splits" not in ran.json["classes"]
        (data / "class0" / "m.csv").unlink(missing_ok=True)
    assert cli("split", "--check", data / "splits" / "m.csv").code == 0


def test_rows_with_a_subset_keep_it_and_the_others_are_divided(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=20)
    rows = [f"photos/class{c}/{n:03d}.png,c{c},{'train' if n < 10 else ''}" for c in range(2) for n in range(20)]
    ran = cli("split", listed(data, rows), "--test-fraction", "0.4", "--out", "m.csv", "--json")
    assert ran.json["counts"]["c0"] == {"train": 15, "val": 1, "test": 4}
    lines = Path("m.csv").read_text().splitlines()
    assert all(",train," in line for line in lines if "/00" in line and line.startswith("photos"))
    whole = listed(data, [row.rpartition(",")[0] + ",train" for row in rows])
    assert cli("split", whole, "--out", "n.csv", "--json").json["counts"]["c0"] == {"train": 16, "val": 4, "test": 0}
    refused = cli("split", whole, "--test-fraction", "0.2", "--out", "n.csv")
    assert refused.code == 2 and "every image of" in refused.err


def test_one_row_without_a_subset_becomes_validation(tmp_path: Path, cli) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    rows = [f"photos/class{c}/{n:03d}.png,c{c},{'train' if n else ''}" for c in range(2) for n in range(6)]
    assert cli("split", listed(data, rows), "--json").json["counts"]["c1"] == {"train": 5, "val": 1, "test": 0}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["class0/000.png,B", "class0/000.png,A"], "line 3: class0/000.png is in group 'A', but in 'B' in line 2"),
        (["class0/000.png,B", "./class0/000.png,A"], "line 3: class0/000.png is in group 'A'"),
        (["class0/000.png"], "line 2: no value for group"),
        (["class0/000.png,B,C"], "line 2: more values than columns"),
    ],
)
def test_contradictory_groups_are_refused(tmp_path: Path, rows: list[str], said: str) -> None:
    images = find_images(make_images(tmp_path / "photos", classes=1, each=3))
    with pytest.raises(DataError) as caught:
        assign_groups(images, str(listed(images.root, rows, "path,group")))
    assert said in caught.value.message


def test_groups_are_matched_by_path_and_unknown_paths_are_reported(tmp_path: Path) -> None:
    images = find_images(make_images(tmp_path / "photos", classes=1, each=3))
    said: list[str] = []
    rows = ["./class0/000.png,A", "class0/001.png,", "nope/x.png,A", "nope/y.png,B", "class0/000.png,A"]
    assign_groups(images, str(listed(images.root, rows, "path,group")), said.append)
    assert [row.group for row in images.rows] == ["A", "", ""]
    assert len(said) == 2 and "lists 2 files not among the images of the split, such as nope/x.png" in said[0]
    assert said[1] == "--group-by: 1 group; 2 files without a group, such as class0/001.png"


@pytest.mark.parametrize(
    ("header", "said"), [("file,who", "requires the columns path and group; it has file, who"), ("", "it has none")]
)
def test_a_csv_of_groups_requires_its_columns(cli, tmp_path: Path, header: str, said: str) -> None:
    data = make_images(tmp_path / "photos", classes=1, each=3)
    ran = cli("split", data, "--group-by", listed(data, [], header))
    assert ran.code == 1 and said in ran.err
    ran = cli("split", data, "--group-by", "gone.csv")
    assert ran.code == 2 and "no such file: gone.csv" in ran.err and "Errno" not in ran.err


def test_two_columns_with_the_same_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has two columns named label"):
        find_images(listed(make_images(tmp_path / "photos"), ["a,b,c"], "path,label,label"))


def test_control_characters_are_kept_in_the_manifest_and_escaped_on_the_terminal(invoke, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    shutil.copy(data / "class0" / "000.png", data / "class0" / "red\x1b[31m.png")
    rows = [f"photos/class{c}/{n:03d}.png,a{c}\x1b[31m" for c in range(2) for n in range(6)]
    more = ["photos/class0/red\x1b[31m.png,a0\x1b[31m", "photos/class0/\0.png,a0\x1b[31m"]
    ran = invoke("split", listed(data, [*rows, *more], "path,label"), "--no-near")
    assert ran.code == 0, ran.err
    assert "left out: 1" in ran.out and r"a0\x1b[31m" in ran.out and "\x1b" not in ran.out
    manifest = read_manifest(Path("splits/list.csv"))
    assert manifest.classes == ("a0\x1b[31m", "a1\x1b[31m") and "photos/class0/red\x1b[31m.png" in manifest.paths
    with pytest.raises(DataError, match=r"line 2: the label 'a\\x00' contains a character that cannot be stored"):
        find_images(listed(data, ["photos/class0/000.png,a\0"], "path,label"))


def test_an_unreadable_class_folder_is_named_in_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    scandir = os.scandir

    def guarded(folder: Path):  # tests may run as root, who may read everything
        if Path(folder).name == "class1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    files = find_images(data)
    scanned = scan(files.root, files.paths, 10**8, 1, False, lambda done, total: None)
    with pytest.raises(DataError, match=r"'class1' has no usable images: class1 is left out .*Permission denied"):
        make_manifest(files, scanned, SplitOptions(near=False), Path("m.csv"))


def test_built_in_sources_pass_the_conformance_check(tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=3)
    assert len(check_source(ImageFolder(), data).rows) == 6
    rows = [f"photos/class{c}/{n:03d}.png,c{c}" for c in range(2) for n in range(3)]
    assert check_source(CsvFile(), listed(data, rows, "path,label")).classes == {"c0", "c1"}


class TestConformanceCheck:
    class Listing(Source):
        """Lists the paths of a text file."""

        def recognizes(self, location: Path) -> bool:
            return location.suffix == ".txt"

        def read(self, location: Path, options: object) -> ImageList:
            images = ImageList(location.parent, "text list", location.name)
            for line in location.read_text().split():
                images.add(line, "a")
            return images

    class Greedy(Listing):
        def recognizes(self, location: Path) -> bool:
            return True

    class Empty(Listing):
        def read(self, location: Path, options: object) -> ImageList:
            return ImageList(location.parent, "text list", location.name)

    @pytest.mark.parametrize(
        ("source", "text", "said"),
        [
            (Greedy, "a.png", "recognizes an empty file"),
            (Empty, "a.png", "lists no images"),
            (Listing, "a.png a.png", "lists an image twice"),
            (Listing, "b.png", "files that do not exist, such as b.png"),
        ],
    )
    def test_a_source_that_breaks_the_contract_fails(self, tmp_path: Path, source, text: str, said: str) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(AssertionError, match=said):
            check_source(source(), tmp_path / "list.txt")

    def test_a_source_that_fulfils_the_contract_passes(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "list.txt").write_text("a.png")
        assert check_source(self.Listing(), tmp_path / "list.txt").paths == ["a.png"]


def test_a_location_that_no_source_recognizes_is_refused(invoke, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("{}")
    ran = invoke("split", "list.json")
    assert ran.code == 2 and "no data source recognizes list.json" in ran.err and "csv, image-folder" in ran.err
    ran = invoke("split", "list.json", "--source", "cvs")
    assert ran.code == 2 and "unknown source 'cvs': did you mean 'csv'?" in ran.err


def test_a_source_chosen_by_name_is_used_again_by_check(invoke, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    rows = [f"photos/class{c}/{n:03d}.png,c{c}" for c in range(2) for n in range(6)]
    listed(data, rows, "path,label").rename("list.txt")
    assert invoke("split", "list.txt", "--source", "csv", "--no-near").code == 0
    assert read_manifest(Path("splits/list.csv")).made["source"] == "csv"
    assert invoke("split", "--check", "splits/list.csv").code == 0
    Path("list.txt").write_text("\n".join(["path,label", rows[0].replace("c0", "c1"), *rows[1:]]))
    ran = invoke("split", "--check", "splits/list.csv", "--json")
    assert ran.code == 1 and ran.json["changed"] == ["photos/class0/000.png"]


def test_a_plugin_that_breaks_the_contract_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.png,a\n")

    def read_as(value: object) -> None:
        monkeypatch.setattr(CsvFile, "read", lambda self, location, options: value)

    read_as(["a.png"])
    with pytest.raises(PluginError, match=r"read\(\) must return an ImageList, not \['a.png'\]"):
        find_images(tmp_path / "list.csv")
    twice = ImageList(tmp_path, "text list")
    for label in "ab":
        twice.add("a.png", label)
    read_as(twice)
    with pytest.raises(DataError, match=r"list\.csv lists a\.png twice"):
        find_images(tmp_path / "list.csv")
    monkeypatch.setattr(CsvFile, "supports_classes_from", False)
    with pytest.raises(UsageError, match=r"--classes-from applies to folders, not to .*list"):
        find_images(tmp_path / "list.csv", options=ReadOptions(classes_from="genus"))

    def broken(self: CsvFile, location: Path) -> bool:
        raise KeyError("format")

    monkeypatch.setattr(CsvFile, "recognizes", broken)
    with pytest.raises(UsageError, match=r"no data source recognizes .*list") as caught:
        find_images(tmp_path / "list.csv")
    assert "KeyError: 'format'" in caught.value.hint
