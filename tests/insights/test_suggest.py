"""Suggestions are new, usable, uncertain and different from each other."""

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from inat_ft_insights.suggest import choose_diverse

import inat_ft
from tests.conftest import make_images

NETWORK = ("--backbone", "resnet18", "--set", "model.weights=none", "--set", "data.image_size=32")


def test_uncertain_images_are_chosen_from_every_cluster() -> None:
    rng = np.random.default_rng(0)
    centers = np.array([[8, 0, 0], [0, 8, 0], [0, 0, 8], [8, 8, 8]])
    clusters = np.repeat(np.arange(4), 50)
    values = (centers[clusters] + rng.normal(0, 0.1, (200, 3))).astype(np.float32)
    unsure = np.where(clusters == 3, 0.001, 0.45)[:, None]  # the classifier is sure of the last cluster
    probabilities = np.hstack([1 - unsure, unsure])
    chosen = choose_diverse(probabilities, values, 3)
    assert sorted(clusters[chosen].tolist()) == [0, 1, 2]
    assert sorted(choose_diverse(probabilities, values, 500).tolist()) == list(range(200))


def test_the_command_leaves_out_labelled_copies_and_unusable_files(tmp_path: Path, invoke) -> None:
    photos = make_images(tmp_path / "photos", each=20)
    invoke("split", photos, "--no-near")
    assert invoke("train", *NETWORK, "--epochs", 1, "--name", "r", "--precision", "fp32").code == 0
    new = make_images(tmp_path / "new", each=5, seed=9)
    shutil.copy(photos / "class0" / "003.png", new / "labelled.png")
    shutil.copy(new / "class0" / "000.png", new / "copy.png")
    (new / "broken.png").write_bytes(b"not an image")
    unusable = ["broken.png"]
    if sys.platform == "linux":
        shutil.copy(new / "class0" / "001.png", new / os.fsdecode(b"caf\xe9.png"))  # not UTF-8
        unusable.append("caf\\xe9.png")

    found = invoke("suggest", "runs/r", new, "--count", 6, "--json")

    assert found.code == 0, found.err
    assert found.json["photos"] == 15 and found.json["already_labelled"] == 1
    assert list(found.json["skipped"]) == unusable
    paths = [each["path"] for each in found.json["suggestions"]]
    assert len(set(paths)) == 6 and not any("labelled" in path for path in paths)
    with Path(found.json["csv"]).open(newline="") as text:
        assert [row["path"] for row in csv.DictReader(text)] == paths
    assert Path(found.json["page"]).read_text().count("data:image/jpeg") == 6
    same = inat_ft.suggest("runs/r", new, count=6, out="again")
    assert [each.path.as_posix() for each in same.chosen] == paths and same.csv.is_file()
    assert "no usable images that the split does not have" in invoke("suggest", "runs/r", photos).err
    assert invoke("suggest", "runs/r", tmp_path / "missing").code == 2
