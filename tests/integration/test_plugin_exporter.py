"""The example exporter, installed as a package, is used by `inat-ft export`."""

import json
import subprocess
from pathlib import Path

import pytest

from inat_ft.exporters import Exporter
from inat_ft.testing import check_exporter
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("exporter")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugins" / "exporter"))
    from bgr_onnx import BgrOnnx

    check_exporter(BgrOnnx(), tmp_path)


def test_the_check_refuses_an_exporter_without_a_suffix_or_a_file(tmp_path: Path) -> None:
    class Silent(Exporter):
        suffix = "onnx"

        def export(self, network, images, metadata, file) -> None:
            self.network = network

        def predict(self, file, images):
            import torch

            return self.network(torch.from_numpy(images)).detach().numpy()

    with pytest.raises(AssertionError, match="'onnx'"):
        check_exporter(Silent(), tmp_path)
    Silent.suffix = ".silent"
    with pytest.raises(AssertionError, match="wrote nothing"):
        check_exporter(Silent(), tmp_path)


def test_an_exporter_plugin_is_selected_by_name(python: Path, manifest_file: Path) -> None:
    options = ["--backbone", "cnn", "--set", "model.filters=16", "--image-size", 32, "--epochs", 1, "--name", "mine"]
    ran = run(python, "train", "--split", manifest_file, *options)
    assert ran.returncode == 0, ran.stderr
    ran = run(python, "export", "runs/mine", "--format", "bgr-onnx", "--out", "bgr.onnx")
    assert ran.returncode == 0 and "format bgr-onnx" in ran.stdout, ran.stderr
    ran = run(python, "export", "runs/mine", "--out", "rgb.onnx")
    assert ran.returncode == 0 and "format onnx" in ran.stdout, ran.stderr
    assert Path("bgr.onnx").read_bytes() != Path("rgb.onnx").read_bytes()
    found = run(python, "doctor", "--json")
    detail = next(each for each in json.loads(found.stdout) if each["what"] == "exporters")
    assert detail["state"] == "ok" and "1 from other packages" in detail["found"]
