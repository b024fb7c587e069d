"""Images of one group stay together in folds, subsets and audits, and in the split of a tuning."""

import shutil
from pathlib import Path

import pytest

from inat_ft.data.manifest import read_manifest
from inat_ft.records import read_record
from tests.conftest import make_images

NETWORK = ("--backbone", "cnn", "--set", "model.filters=16", "--set", "data.image_size=32")
EACH = 4
"""Images of a group."""


@pytest.fixture
def grouped(tmp_path: Path, invoke) -> Path:
    """The manifest of three classes of ten groups. The images of one group are in the folder of another class."""
    photos = make_images(tmp_path / "photos", each=10 * EACH)
    for file in sorted(photos.glob("*/*.png")):
        file.rename(file.with_name(f"{file.parent.name}-{int(file.stem) // EACH}_{file.name}"))
    for file in photos.glob("class2/class2-3_*"):
        shutil.move(file, photos / "class0" / file.name)
    made = invoke("split", photos, "--no-near", "--group-by", r"^([^_]+)_", "--test-fraction", 0)
    assert made.code == 0, made.err
    return Path("splits/photos.csv")


def divided(file: Path) -> set[str]:
    """Return the groups of a manifest that are in more than one subset."""
    manifest = read_manifest(file)
    places: dict[str, set[int]] = {}
    for group, subset in zip(manifest.groups, manifest.subsets.tolist(), strict=True):
        places.setdefault(group, set()).add(subset)
    assert len(places) == 30
    return {group for group, subsets in places.items() if len(subsets) > 1}


def test_an_audit_finds_a_group_with_a_wrong_label(grouped: Path, invoke) -> None:
    found = invoke("audit", grouped, *NETWORK, "--json")
    assert found.code == 0, found.err
    wrong = {each["path"] for each in found.json["suspects"] if each["kind"] == "label"}
    assert {path for path in wrong if "class2-3_" in path} == {f"class0/class2-3_{n:03d}.png" for n in range(12, 16)}


@pytest.mark.slow
def test_no_fold_and_no_subset_divides_a_group(grouped: Path, invoke) -> None:
    training = ("--epochs", 1, "--batch-size", 8, "--mode", "full")
    ran = invoke("train", "--backbone", "cnn", "--image-size", 32, *training, "--folds", 3, "--name", "folds")
    assert ran.code == 0, ran.err
    manifests = sorted(Path("runs/folds/splits").glob("fold-*.csv"))
    assert len(manifests) == 3 and not any(map(divided, manifests)) and not divided(grouped)

    trained = invoke(
        "learning-curve", *NETWORK, "--mode", "full", "--set", "optim.epochs=1", "--draws", 2, "--sizes", 3
    )
    assert trained.code == 0, trained.err
    names = [file.stem for file in Path("insights/learning-curve-photos-full/points").iterdir()]
    assert len(names) == 6 and all(int(name.split("-")[3]) % EACH == 0 for name in names)
    curve = invoke("learning-curve", *NETWORK, "--draws", 2, "--json")
    assert all(2 * point["images"] % EACH == 0 for point in curve.json["points"] if point["kind"] == "measured")


@pytest.mark.slow
def test_a_tuning_keeps_the_groups_of_its_manifest(grouped: Path, invoke) -> None:
    ran = invoke("tune", grouped, *NETWORK, "--budget", "60s", "--strategy", "full", "--json")
    assert ran.code == 0, ran.err
    record, _ = read_record(Path(ran.json["run"]))
    assert record.split is not None and record.split.fingerprint == read_manifest(grouped).fingerprint
    assert not divided(grouped)
