"""Names of classes and files can contain any characters, and are kept unchanged."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inat_ft.data.manifest import Manifest, manifest_text, read_manifest, write_manifest
from inat_ft.data.sources.base import LeftOut, Reason
from inat_ft.errors import DataError
from tests.conftest import make_images

NAMES = [
    "[red] fox [b]",
    "\"quoted\", 'both'",
    "line\nbreak",
    "carriage\rreturn",
    "bell\x07\x1b[31m",
    "שועל אדום \u202e",
    "赤狐",
    "=1+1",
    "-rf",
    "  spaces  ",
    "Ka\u0308fer",
    "a;b\tc|d\\e",
    "#recycle",
    "nan",
]

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
_path = _text.filter(lambda name: ".." not in name and not name.startswith("/"))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(_path, _text, min_size=1, max_size=8), st.lists(_path, max_size=3))
def test_a_manifest_round_trips_every_name(tmp_path_factory, labels: dict[str, str], left: list[str]) -> None:
    paths, classes = sorted(labels), tuple(sorted(set(labels.values())))
    manifest = Manifest(
        tmp_path_factory.getbasetemp() / "names.csv",
        tmp_path_factory.getbasetemp(),
        classes,
        paths,
        np.array([classes.index(labels[path]) for path in paths]),
        np.zeros(len(paths), np.uint8),
        [f"{number:064x}" for number in range(len(paths))],
        paths,
        [LeftOut(path, f"label conflict: {path}", Reason.LABEL_CONFLICT) for path in left],
    )
    write_manifest(manifest, force=True)
    again = read_manifest(manifest.path)
    assert list(again.paths) == paths and list(again.groups) == paths
    assert again.classes == classes and again.labels.tolist() == manifest.labels.tolist()
    assert list(again.left_out) == list(manifest.left_out)


def test_unusual_names_are_kept_by_split_check_and_json(invoke, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=len(NAMES), each=6)
    for number, name in enumerate(NAMES):
        folder = data / f"class{number}"
        for file, odd in zip(sorted(folder.iterdir()), NAMES, strict=False):
            file.rename(folder / f"{odd}.png")
        folder.rename(data / name)
    ran = invoke("split", data, "--no-near", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.json["counts"]) == sorted(NAMES) == ran.json["classes"]
    manifest = read_manifest(Path("splits/photos.csv"))
    assert sorted(manifest.paths) == sorted(f"{name}/{odd}.png" for name in NAMES for odd in NAMES[:6])
    assert invoke("split", "--check", "splits/photos.csv").code == 0
    table = invoke("split", data, "--no-near")
    assert (
        table.code == 0 and "\x1b" not in table.out and "[red] fox [b]" in table.out and "line\\x0abreak" in table.out
    )
    changed, gone, new = (f"{name}/{NAMES[0]}.png" for name in ("line\nbreak", "carriage\rreturn", "赤狐"))
    shutil.copy(data / "nan" / f"{NAMES[1]}.png", data / changed)
    (data / gone).unlink()
    shutil.copy(data / new, data / (new + "\n.png"))
    checked = invoke("split", "--check", "splits/photos.csv", "--json")
    assert checked.json == {"missing": [gone], "changed": [changed], "new": [new + "\n.png"]}


def test_unusual_labels_of_a_csv_are_kept(invoke, tmp_path: Path) -> None:
    import csv

    data = make_images(tmp_path / "photos", classes=1, each=36)
    labels = [name for name in NAMES if name.strip() == name][:12]
    rows = [(f"photos/class0/{n:03d}.png", labels[n % 12]) for n in range(36)]
    with (data.parent / "list.csv").open("w", encoding="utf-8", newline="") as out:
        csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *rows])
    ran = invoke("split", "list.csv", "--no-near", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["classes"] == sorted(labels)


def test_a_folder_whose_name_is_not_utf8_is_left_out_and_named(invoke, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=3, each=6)
    os.rename(data / "class2", os.fsencode(data) + b"/K\xe4fer")
    ran = invoke("split", data, "--no-near", "--json")
    assert ran.code == 0, ran.err
    assert r"K\xe4fer: left out, because the name is not UTF-8" in ran.err
    assert ran.json["classes"] == ["class0", "class1"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret.png", "class0/../../x.png", ".."])
def test_a_manifest_that_names_files_outside_its_root_is_refused(
    manifest_file: Path, tmp_path: Path, path: str
) -> None:
    manifest = read_manifest(manifest_file)
    hostile = Manifest(**{**manifest.__dict__, "paths": [path, *manifest.paths[1:]], "fingerprint": ""})
    file = tmp_path / "hostile.csv"
    file.write_text(manifest_text(hostile), encoding="utf-8")
    with pytest.raises(DataError, match="outside the folder of the images"):
        read_manifest(file)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "words", [("split", "photos"), ("predict", "runs/x", "photos"), ("train",), ("compare", "a", "b"), ("cache",)]
)
def test_every_command_requires_a_utf8_locale(process, tmp_path: Path, words) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    (data / "class0").rename(data / "Käfer")
    ran = process(*words, **ASCII)
    assert ran.code == 2 and "ascii" in ran.err and "PYTHONUTF8=1" in ran.err and ran.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_help_works_in_any_locale_and_output_in_another_encoding_is_escaped(process, tmp_path: Path) -> None:
    assert process("split", "--help", **ASCII).code == 0
    data = make_images(tmp_path / "photos", classes=2, each=6)
    (data / "class0").rename(data / "Käfer")
    ran = process("split", data, "--no-near", PYTHONIOENCODING="ascii")
    assert ran.code == 0 and r"K\xe4fer" in ran.out
    assert "Käfer" in process("split", data, "--no-near", "--json", PYTHONIOENCODING="ascii").json["classes"]
