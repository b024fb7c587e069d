"""The example data source, installed as a package, is used by `inat-ft split`."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import make_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("source")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write_annotations(folder: Path, sequence: int = 2) -> Path:
    """Write a COCO Camera Traps file for two classes of ten images, in sequences of that many images."""
    make_images(folder / "images", classes=2, each=10)
    numbers = [(label, number) for label in range(2) for number in range(10)]
    content = {
        "categories": [{"id": 7, "name": "fox"}, {"id": 8, "name": "hare"}],
        "images": [
            {"id": f"{c}-{n}", "file_name": f"images/class{c}/{n:03d}.png", "seq_id": f"{c}-{n // sequence}"}
            for c, n in numbers
        ],
        "annotations": [{"id": f"{c}{n}", "image_id": f"{c}-{n}", "category_id": 7 + c} for c, n in numbers],
    }
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file


def test_a_source_plugin_is_recognized_and_its_manifest_is_checked(python, tmp_path: Path) -> None:
    file = write_annotations(tmp_path)
    ran = run(python, "split", file, "--json")
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert made["classes"] == ["fox", "hare"] and made["layout"] == "COCO Camera Traps"
    assert made["counts"]["fox"] == {"train": 6, "val": 2, "test": 2}
    rows = Path("splits/annotations.csv").read_text().splitlines()[2:]
    subsets: dict[str, set[str]] = {}
    for row in rows:
        path, label, subset, *_ = row.split(",")
        subsets.setdefault(f"{label} {int(Path(path).stem) // 2}", set()).add(subset)
    assert all(len(found) == 1 for found in subsets.values())  # sequences stay together
    assert run(python, "split", "--check", "splits/annotations.csv").returncode == 0
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 8
    file.write_text(json.dumps(content))
    checked = run(python, "split", "--check", "splits/annotations.csv", "--json")
    assert checked.returncode == 1 and json.loads(checked.stdout)["changed"] == ["images/class0/000.png"]


def test_a_source_is_chosen_by_name_and_a_failing_plugin_is_named(python, tmp_path: Path) -> None:
    file = write_annotations(tmp_path, 1)
    assert run(python, "split", file, "--source", "camera-traps").returncode == 0
    unknown = run(python, "split", file, "--source", "camera-trap")
    assert unknown.returncode == 2 and "did you mean 'camera-traps'?" in unknown.stderr
    file.write_text(json.dumps({"categories": []}))
    failed = run(python, "split", file)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "source 'camera-traps' of package 'inat-ft-camera-traps' failed in read(): KeyError" in failed.stderr
    assert run(python, "split", "images", "--no-near").returncode == 0


def test_the_example_passes_the_conformance_check(python, tmp_path: Path) -> None:
    code = "from pathlib import Path; from camera_traps import CameraTraps; from inat_ft.testing import check_source\n"
    code += f"check_source(CameraTraps(), Path({str(write_annotations(tmp_path))!r}))"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
