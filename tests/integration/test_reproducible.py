"""The same command gives the same record and weights, whatever the workers, the order of files, locale and time zone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inat_ft
from inat_ft.records import RunRecord, read_record
from tests.conftest import make_images

pytestmark = pytest.mark.slow

TIMES = {"created", "seconds", "images_per_s", "peak_memory_mib", "config", "environment"}
TRAIN = (
    "train",
    "--split",
    "splits/photos.csv",
    "--image-size",
    32,
    "--epochs",
    2,
    "--precision",
    "fp32",
    "--device",
    "cpu",
)


def comparable(record: RunRecord) -> dict[str, object]:
    found = record.model_dump(mode="json", exclude=TIMES)
    for epoch in found["history"]:
        del epoch["seconds"]
    return found


SURROUNDINGS = (
    (1, 1, {"LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "1"}),
    (3, -1, {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "2"}),
)
"""Workers, order in which files are made, and environment."""


def copy_in_order(source: Path, target: Path, direction: int) -> None:
    """Copy class folders file by file: many file systems list files in the order in which they were made."""
    for file in sorted(source.rglob("*.png"))[::direction]:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


FROZEN = ["--backbone", "resnet18", "--set", "model.weights=none", "--set", "data.image_size=32"]
COMMANDS = (
    ["split", "photos", "--test-fraction", "0.25", "--workers", "{workers}"],
    [
        *map(str, TRAIN),
        "--backbone",
        "cnn",
        "--set",
        "model.filters=16",
        "--workers",
        "{workers}",
        "--name",
        "r",
        "--folds",
        "2",
    ],
    ["learning-curve", *FROZEN, "--draws", "2", "--set", "compute.workers={workers}"],
    ["audit", "splits/photos.csv", *FROZEN, "--set", "compute.workers={workers}"],
    ["suggest", "runs/r/r-fold-1", "new", "--count", "5"],
    ["predict", "runs/r/r-fold-1", "new", "--coverage", "0.8", "--out", "predictions.csv"],
    ["export", "runs/r/r-fold-1", "--format", "hub-folder", "--out", "exported"],
)
SCRIPT = """
import json, sys
from inat_ft.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["inat-ft", *words]
    try:
        main.run()
    except SystemExit as end:
        if end.code:
            raise
"""


def test_cross_validation_and_the_other_commands_depend_on_their_input_only(tmp_path: Path) -> None:
    make_images(tmp_path / "made")
    make_images(tmp_path / "more", each=4, seed=1)
    found = []
    for number, (workers, direction, environment) in enumerate(SURROUNDINGS):
        place = tmp_path / f"place{number}"
        copy_in_order(tmp_path / "made", place / "photos", direction)
        copy_in_order(tmp_path / "more", place / "new", direction)
        words = [[word.format(workers=workers) for word in command] for command in COMMANDS]
        paths = [str(Path(inat_ft.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(words)],
            cwd=place,
            env={**os.environ, **environment, "INAT_FT_CACHE_DIR": "cache", "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        patterns = (
            "splits/*.csv",
            "runs/r/**/*.csv",
            "runs/r/**/*.safetensors",
            "insights/*/*.csv",
            "*.csv",
            "exported/*.s*",
        )
        files = sorted(file for pattern in patterns for file in place.glob(pattern))
        summary = json.loads((place / "runs/r/cross-validation.json").read_text())
        fold = comparable(read_record(place / "runs/r/r-fold-2")[0])
        found.append((summary["metrics"], fold, {str(file.relative_to(place)): file.read_bytes() for file in files}))
    assert len(found[0][2]) >= 12, sorted(found[0][2])
    for one, other in zip(*found, strict=True):
        assert one == other


@pytest.mark.parametrize(
    "network",
    [
        ("--backbone", "cnn", "--set", "model.filters=16", "--dropout", 0.2, "--augment", "standard"),
        ("--backbone", "resnet18", "--weights", "none", "--mode", "partial", "--augment", "flip"),
    ],
    ids=["cnn", "partial"],
)
def test_the_same_command_gives_the_same_record(cli, tmp_path: Path, monkeypatch, network) -> None:
    make_images(tmp_path / "made")
    found = []
    for number, (workers, direction, environment) in enumerate(SURROUNDINGS):
        place = tmp_path / f"place{number}"
        copy_in_order(tmp_path / "made", place / "photos", direction)
        monkeypatch.chdir(place)
        for name, value in {**environment, "INAT_FT_CACHE_DIR": str(place / "cache")}.items():
            monkeypatch.setenv(name, value)
        split = cli("split", "photos", "--test-fraction", 0.25, "--workers", workers)
        assert split.code == 0, split.err
        trained = cli(*TRAIN, *network, "--workers", workers, "--name", "r")
        assert trained.code == 0, trained.err
        record, run = read_record(Path("runs/r"))[0], Path("runs/r")
        written = [Path("splits/photos.csv"), run / "model.safetensors", run / "predictions-val.csv"]
        found.append((comparable(record), [file.read_bytes() for file in written]))
        assert os.stat(run / "model.safetensors").st_mode == os.stat(run / "record.json").st_mode
    assert found[0] == found[1]
