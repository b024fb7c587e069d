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

import inat_ft
from inat_ft.api.evaluate import PredictionResult
from inat_ft.data.manifest import read_manifest
from inat_ft.errors import DataError, InatFtError, UsageError
from inat_ft.evaluation.evaluate import evaluate_run
from inat_ft.evaluation.predict import predict_images
from inat_ft.evaluation.prediction import Prediction, Taxon
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
    shares = [[float(row[f"p_class{label}"]) for label in range(3)] for row in rows]
    assert sum(shares[0]) == pytest.approx(1) and [float(row["confidence"]) for row in rows] == list(map(max, shares))


def test_test_images_that_changed_are_not_scored_as_those_that_were_split(
    run: Path, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(images, tmp_path / "photos")
    manifest, record = read_manifest(images.parent / "photos.csv"), run / "record.json"
    ledger = manifest.path.with_name(f"{manifest.path.name}.looks.jsonl")
    before = ledger.exists() and ledger.read_text()
    first, second = (manifest.paths[row] for row in manifest.rows("test")[:2])
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "photos" / first)
    with pytest.raises(DataError, match=f"1 image changed since .*: {first}") as caught:
        evaluate_run(run, "test", root=tmp_path / "photos")
    assert "data.changed=ignore" in caught.value.hint and not (run / "predictions-test.csv").exists()
    assert (ledger.exists() and ledger.read_text()) == before
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
    assert ran.code == 1 and "cannot read any of the images" in ran.err
    assert cli("predict", run, tmp_path / "nowhere").code == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no files"):
        predict_images([run], [tmp_path / "empty"])
    for text, problem in (
        ("path,x,y,w\nx.png,0,0,1\n", "boxes.csv requires the columns path and h"),
        ("path,x,y,w,h\n,0,0,1,1\n", "boxes.csv, line 2: no value for path"),
        ("path,x,y,w,h\nx.png,0,0,1,2\n", "boxes.csv, line 2: the box x 0, y 0, w 1, h 2 is not inside the image"),
        ("path,x,y,w,h\n", "no image is listed"),
    ):
        (tmp_path / "boxes.csv").write_text(text)
        ran = cli("predict", run, tmp_path / "boxes.csv", "--out", "out.csv")
        assert ran.code == 1 and problem in " ".join(ran.err.split()) and not Path("out.csv").exists()
    with pytest.raises(UsageError, match="is not a run"):
        predict_images([tmp_path / "empty"], [tmp_path / "x.png"])


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_an_exported_network_predicts_the_same_from_pixels(run: Path, images: Path, name: str) -> None:
    done = export_run(run, run / name)
    assert done.largest_difference < 1e-4 and done.checked_on == "images of the split"
    files = sorted(images.rglob("*.png"))[:5]
    predictions, _ = predict_images([run], files)
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


def test_without_its_images_an_export_is_checked_on_random_pixels(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    for name in ("record.json", "model.safetensors"):
        shutil.copy(run / name, alone)
    assert export_run(alone, format="torch-export").checked_on == "random pixels"


def test_a_missing_package_and_an_unknown_format_are_named(run: Path, monkeypatch, invoke) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match="onnxruntime"):
        export_run(run)
    ran = invoke("export", run, "--format", "torch-exprot")
    assert ran.code == 2 and "unknown exporter 'torch-exprot': did you mean 'torch-export'?" in ran.err
    ran = invoke("export", run, "--format", "torch-export", "--json")
    assert ran.code == 0 and ran.json["file"].endswith("model.pt2") and ran.json["largest_difference"] < 1e-4


def test_several_runs_are_an_ensemble(run: Path, trained: Path, images: Path, cli, tmp_path: Path) -> None:
    files = sorted(images.rglob("*.png"))[::9]
    alone = [np.stack([row.probabilities for row in predict_images([each], files)[0]]) for each in (run, trained)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    ran = cli("predict", run, *files, tmp_path / "broken.png", "--ensemble", trained, "--out", "p.csv")
    assert ran.code == 0 and ran.err.count("broken.png: not an image; skipped") == 1, ran.err
    with Path("p.csv").open() as file:
        found = [[float(row[f"p_class{label}"]) for label in range(3)] for row in csv.DictReader(file)]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(found, (alone[0] + alone[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("classes", "problem"),
    [
        (["class1", "class0", "class2"], "they are in another order"),
        (["class0", "class1", "moth"], "only one of them has class2, moth"),
    ],
)
def test_runs_with_other_classes_are_not_averaged(trained: Path, images: Path, cli, classes, problem: str) -> None:
    from safetensors.torch import load_file, save_file

    from inat_ft.models.weights import read_metadata

    file = trained / "model.safetensors"
    save_file(load_file(file), "other.safetensors", read_metadata(file) | {"classes": json.dumps(classes)})
    ran = cli("predict", trained, images, "--ensemble", "other.safetensors")
    assert ran.code == 2 and f"the classes of other.safetensors are not those of {trained}: {problem}" in ran.err
    with pytest.raises(UsageError, match="no run to predict with"):
        inat_ft.predict([], images)


def test_names_of_columns_are_names_of_classes_too(tmp_path: Path) -> None:
    """A class can have the name of any column of a CSV of predictions, with or without taxa and sets."""
    names = (
        "taxon",
        "rank",
        "set",
        "decision",
        "confidence",
        "path",
        "predicted",
        "true",
        "sha256",
        "taxon_confidence",
    )
    p = np.full((2, len(names)), 0.01)
    p[[0, 1], [0, 5]] = 1 - 0.01 * (len(names) - 1)
    for classes in (names, tuple(reversed(names)), names[1:]):
        shares = p[:, : len(classes)] / p[:, : len(classes)].sum(1, keepdims=True)
        taxon = Taxon("Mammalia", "class", 0.75)
        rows = [Prediction(Path(f"{n}.png"), classes, shares[n], taxon, classes[:1], "accept") for n in (0, 1)]
        PredictionResult(rows).to_csv(tmp_path / "out.csv")
        with (tmp_path / "out.csv").open(newline="") as file:
            header = next(csv.reader(file))
            found = list(csv.DictReader(file, header))
        assert len(set(header)) == len(header) and header[:3] == ["path", "predicted", "confidence"]
        assert [float(found[0][f"p_{name}"]) for name in classes] == pytest.approx(shares[0], abs=1e-8)
        share = "taxon_confidence" if "taxon" in classes else "p_taxon"
        assert (found[0]["taxon"], found[0]["rank"], found[0][share]) == ("Mammalia", "class", "0.75")

        labelled = [",".join([*header, "true"]), *(",".join([*row.values(), classes[1]]) for row in found)]
        (tmp_path / "labelled.csv").write_text("\n".join(labelled))
        again = read_predictions(tmp_path / "labelled.csv")
        assert again.classes == classes
        np.testing.assert_allclose(again.probabilities, shares, atol=1e-8)
