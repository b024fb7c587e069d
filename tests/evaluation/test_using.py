"""A trained network in use: predictions for images without labels, and ONNX for programs without torch."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inat_ft.data.manifest import read_manifest
from inat_ft.errors import DataError, InatFtError, UsageError
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.inference import predict_images
from inat_ft.evaluation.ledger import past_test_evaluations
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.exporters import export_run
from inat_ft.images.decode import load_image, sha256_of
from inat_ft.training import train


@pytest.fixture
def run(config, directories) -> Path:
    return train(config(optim__epochs=2, optim__lr=1e-2, model__backbone="cnn", strategy__name="full"), directories)[1]


def test_predictions_are_those_of_an_evaluation(run: Path, images: Path, cli, tmp_path: Path) -> None:
    evaluate_run(run, "test")
    known = read_predictions(run / "predictions-test.csv")
    shutil.copytree(images, tmp_path / "new")
    (tmp_path / "new" / "class0" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "new" / ".DS_Store").write_bytes(b"x")
    ran = cli("predict", run, tmp_path / "new", "--out", "p.csv", "--json")
    assert ran.code == 0, ran.err
    assert "broken.png: not an image; skipped" in ran.err
    said = {Path(answer["path"]).relative_to(tmp_path / "new").as_posix(): answer for answer in ran.json}
    assert len(said) == 60 and all(len(answer["top"]) == 3 for answer in said.values())
    for row, path in enumerate(known.paths):
        assert said[path]["predicted"] == known.classes[known.predicted[row]]
        assert said[path]["probability"] == pytest.approx(known.probabilities[row].max(), abs=1e-5)
    with Path("p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == [answer["predicted"] for answer in ran.json]
    assert sum(float(rows[0][f"p_class{label}"]) for label in range(3)) == pytest.approx(1)


def test_test_images_that_changed_are_not_scored_as_those_that_were_split(
    run: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "photos")
    manifest, record = read_manifest(images.parent / "photos.csv"), run / "record.json"
    before = past_test_evaluations(manifest.path, manifest.subset_fingerprint("test"))
    first, second = (manifest.paths[row] for row in manifest.rows("test")[:2])
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "photos" / first)
    with pytest.raises(DataError, match=f"1 image changed since .*: {first}") as caught:
        evaluate_run(run, "test", root=tmp_path / "photos")
    assert "data.changed=ignore" in caught.value.hint and not (run / "predictions-test.csv").exists()
    assert past_test_evaluations(manifest.path, manifest.subset_fingerprint("test")) == before
    record.write_text(record.read_text().replace('"changed": "error"', '"changed": "ignore"'))
    evaluate_run(run, "test", root=tmp_path / "photos")
    known = read_predictions(run / "predictions-test.csv")
    assert known.hashes[known.paths.index(first)] == sha256_of(tmp_path / "photos" / first)
    record.write_text(record.read_text().replace('"changed": "ignore"', '"changed": "error"'))
    (tmp_path / "photos" / second).unlink()
    with pytest.raises(DataError, match="1 image missing or unreadable, 1 image changed") as caught:
        evaluate_run(run, "test", root=tmp_path / "photos")
    assert "restore the files" in caught.value.hint and "ignore" not in caught.value.hint


def test_what_cannot_be_predicted(run: Path, cli, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    ran = cli("predict", run / "record.json", tmp_path / "x.png")
    assert ran.code == 1 and "none of the images can be read" in ran.err
    assert cli("predict", run, tmp_path / "nowhere").code == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no files"):
        predict_images(run, [tmp_path / "empty"])
    with pytest.raises(UsageError, match="is not a run"):
        predict_images(tmp_path / "empty", [tmp_path / "x.png"])


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_exported_network_predicts_the_same_from_pixels(run: Path, images: Path, name: str) -> None:
    done = export_run(run, run / name)
    assert done.largest_difference < 1e-4
    files = sorted(images.rglob("*.png"))[:5]
    predictions, _ = predict_images(run, files)
    if name == "model.onnx":
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(done.file, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
    else:
        metadata = {"classes": "", "preprocess": ""}
        program = torch.export.load(done.file, extra_files=metadata).module()
    size = json.loads(metadata["preprocess"])["image_size"]
    pixels = np.stack([load_image(file, size) for file in files])
    if name == "model.onnx":
        (exported,) = session.run(None, {"images": pixels})
    else:
        exported = program(torch.from_numpy(pixels)).detach().numpy()
    assert json.loads(metadata["classes"]) == ["class0", "class1", "class2"]
    np.testing.assert_allclose(exported, np.stack([row.probabilities for row in predictions]), atol=1e-4)


def test_an_export_that_differs_from_pytorch_is_not_kept(run: Path, monkeypatch) -> None:
    monkeypatch.setattr("inat_ft.exporters._TOLERANCE", -1.0)
    with pytest.raises(InatFtError, match="does not match PyTorch"):
        export_run(run, run / "other.pt2")
    assert not (run / "other.pt2").exists()


def test_a_missing_package_and_an_unknown_format_are_named(run: Path, monkeypatch, invoke) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="onnxruntime"):
        export_run(run)
    ran = invoke("export", run, "--format", "torch-exprot")
    assert ran.code == 2 and "unknown exporter 'torch-exprot': did you mean 'torch-export'?" in ran.err
    ran = invoke("export", run, "--format", "torch-export", "--json")
    assert ran.code == 0 and ran.json["file"].endswith("model.pt2") and ran.json["largest_difference"] < 1e-4
