"""Exported files give PyTorch's probabilities for photographs, in a process that has only the program they are for."""

import ast
import errno
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from inat_ft_exporters.folder import FolderExporter
from PIL import Image

import inat_ft
from inat_ft.api.network import Transform
from inat_ft.errors import StorageError, UsageError
from inat_ft.evaluation.predict import predict_images
from inat_ft.exporters import export_run
from inat_ft.images.decode import load_image
from inat_ft.images.resizing import Resizing
from inat_ft.models.base import Preprocess
from inat_ft.records import check_output
from inat_ft.training import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_predict.py"
READERS = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(file)
metadata = session.get_modelmeta().custom_metadata_map
predict = lambda images: session.run(["probabilities"], {"images": images})[0]
""",
    "torch-export": """
import torch
metadata = {"classes": "", "preprocess": ""}
program = torch.export.load(file, extra_files=metadata).module()
predict = lambda images: program(torch.from_numpy(images)).detach().numpy()
""",
    "openvino": """
import openvino
model = openvino.Core().read_model(f"{file}/model.xml")
metadata = {name: model.get_rt_info(["inat_ft", name]).value for name in ("classes", "preprocess")}
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
predict = lambda images: compiled({"images": images})["probabilities"]
""",
    "safetensors": """
import timm, torch
from safetensors import safe_open
with safe_open(file, "pt") as opened:
    metadata, state = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}
names = json.loads(metadata["classes"])
model = timm.create_model(sys.argv[3], num_classes=len(names)).eval()
model.load_state_dict(state)
how = json.loads(metadata["preprocess"])
scale = lambda images: (torch.from_numpy(images).float() / 255 - torch.tensor(how["mean"])) / torch.tensor(how["std"])
predict = lambda images: model(scale(images).permute(0, 3, 1, 2)).softmax(1).detach().numpy()
""",
    "timm": """
import timm, torch
model = timm.create_model(f"local-dir:{file}", pretrained=True).eval()
how = timm.data.resolve_data_config(model=model)
scale = lambda images: (torch.from_numpy(images).float() / 255 - torch.tensor(how["mean"])) / torch.tensor(how["std"])
predict = lambda images: model(scale(images).permute(0, 3, 1, 2)).softmax(1).detach().numpy()
names = json.load(open(f"{file}/config.json"))["label_names"]
metadata = {"classes": json.dumps(names), "preprocess": json.dumps({"image_size": how["input_size"][-1]})}
""",
    "hub-folder": """
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(file).eval()
processor = AutoImageProcessor.from_pretrained(file)
pixels = lambda images: processor([Image.fromarray(image) for image in images], return_tensors="pt")
predict = lambda images: model(**pixels(images)).logits.softmax(1).detach().numpy()
names = list(model.config.id2label.values())
metadata = {"classes": json.dumps(names), "preprocess": json.dumps({"image_size": 64})}
""",
}
LIBRARIES = {"onnx": "onnxruntime", "openvino": "openvino", "timm": "timm", "hub-folder": "transformers"}
SCRIPT = """
import json, sys
import numpy as np
file = sys.argv[1]
{}
images = np.load(sys.argv[2])
assert "inat_ft" not in sys.modules
print(json.dumps([metadata, predict(images).tolist(), predict(images[:1]).tolist()]))
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs that scikit-learn brings along, and parts of them."""
    spec = find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for name in ("china", "flower"):
        image = Image.open(Path(spec.submodule_search_locations[0]) / "datasets" / "images" / f"{name}.jpg")
        for number, box in enumerate([(0, 0, *image.size), (200, 100, 420, 400)]):
            files.append(folder / f"{name}{number}.png")
            image.crop(box).save(files[-1])
    return files


@pytest.fixture
def run(config, directories) -> Path:
    options = {"optim__epochs": 1, "optim__lr": 1e-3, "data__image_size": 64, "strategy__name": "full"}
    return train(config(model__backbone="timm:test_resnet", track__files=True, **options), directories)[1]


def probabilities(run: Path, files: list[Path]) -> np.ndarray:
    found = np.stack([row.probabilities for row in predict_images([run], files)[0]])
    assert np.median(found.max(1)) < 0.99 and np.ptp(found, axis=0).max() > 1e-3, "the images cannot show a difference"
    return found


def in_a_process(*words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True, env=env, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_fresh_process_gets_the_probabilities_of_pytorch(run: Path, photos, name: str, tmp_path: Path) -> None:
    pytest.importorskip(LIBRARIES.get(name, "torch"))
    done = export_run(run, tmp_path / f"exported-{name}", name)
    np.save(tmp_path / "images.npy", np.stack([load_image(file, 64) for file in photos]))
    ran = in_a_process("-c", SCRIPT.format(READERS[name]), done.file, tmp_path / "images.npy", "test_resnet")
    assert ran.returncode == 0, ran.stderr
    metadata, found, first = json.loads(ran.stdout.splitlines()[-1])
    assert json.loads(metadata["classes"]) == ["class0", "class1", "class2"]
    assert json.loads(metadata["preprocess"])["image_size"] == 64
    expected = probabilities(run, photos)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(first, expected[:1], atol=1e-4)


class Variant(NamedTuple):
    """Settings and images of a run."""

    resize: str
    size: int
    classes: int
    mode: str
    backbone: str = "timm:test_resnet"
    weights: str = "none"


VARIANTS = (
    Variant("crop", 224, 2, "L"),
    Variant("pad", 64, 12, "RGB"),
    Variant("weights", 64, 2, "L", "efficientnet_lite0", "imagenet"),
)
OWN_PIXELS = """
import json, sys
import timm, torch
from PIL import Image
file, mode, *photos = sys.argv[1:]
if mode == "timm":
    model = timm.create_model(f"local-dir:{file}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    names = json.load(open(f"{file}/config.json"))["label_names"]
    images = torch.stack([transform(Image.open(photo).convert("RGB")) for photo in photos])
    rows = model(images).softmax(1).tolist()
    found = [dict(zip(names, row)) for row in rows]
else:
    from transformers import pipeline
    classify = pipeline("image-classification", model=file)
    options = {"top_k": classify.model.config.num_labels, "function_to_apply": "softmax"}
    found = [{each["label"]: each["score"] for each in classify(photo, **options)} for photo in photos]
assert "inat_ft" not in sys.modules
print(json.dumps(found))
"""
"""A program that makes the pixels itself, from image files."""


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda v: f"{v.resize}-{v.size}-{v.classes}-{v.mode}")
def variant(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Path], Variant]:
    """A run with these settings, and photographs in this mode."""
    pytest.importorskip("timm")
    v: Variant = request.param
    folder, rng = tmp_path_factory.mktemp("variant"), np.random.default_rng(0)
    for label in range(v.classes):
        (folder / "data" / f"class {label:02d}").mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, (5, 5, 3)).astype(np.uint8)
            pixels[label % 5], pixels[:, label // 5] = 255, 0
            image = Image.fromarray(pixels).convert(v.mode).resize(rng.integers(50, 140, 2).tolist())
            image.save(folder / "data" / f"class {label:02d}" / f"{number}.png")
    files = sorted((folder / "data").glob("*/0.png"))
    split = inat_ft.split(folder / "data", out=folder / "data.csv", test_fraction=0.2, near=False)
    run = inat_ft.train(
        split=split, backbone=v.backbone, weights=v.weights, image_size=v.size, resize=v.resize, epochs=2, batch_size=8,
        lr=3e-3, mode="full" if v.weights == "none" else "head", runs_dir=folder / "runs", cache_dir=folder / "cache",
    )  # fmt: skip
    return run.directory, files, v


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_every_format_of_every_kind_of_run_gives_the_predictions_of_inat_ft(variant, name: str, tmp_path: Path) -> None:
    run, files, v = variant
    pytest.importorskip(LIBRARIES.get(name, "torch"))
    done = export_run(run, tmp_path / f"exported-{name}", name)
    assert done.checked_on == "images of the split"
    expected = probabilities(run, files)
    classes = [f"class {label:02d}" for label in range(v.classes)]
    if name in ("timm", "hub-folder"):
        ran = in_a_process("-c", OWN_PIXELS, done.file, name, *files)
        assert ran.returncode == 0, ran.stderr
        found = [[row[each] for each in classes] for row in json.loads(ran.stdout.splitlines()[-1])]
        if v.resize == "pad":  # timm pads with the mean color
            assert name == "timm" or "with black before" in (done.file / "README.md").read_text()
        else:
            assert name == "timm" or "with black before" not in (done.file / "README.md").read_text()
            np.testing.assert_allclose(found, expected, atol=1e-4 if v.resize == "weights" else 0.01)
        return
    resizing = Preprocess.model_validate(json.loads((run / "record.json").read_text())["preprocess"]).resizing
    np.save(tmp_path / "images.npy", np.stack([load_image(file, v.size, resizing=resizing) for file in files]))
    architecture = "test_resnet" if v.weights == "none" else "tf_efficientnet_lite0"
    ran = in_a_process("-c", SCRIPT.format(READERS[name]), done.file, tmp_path / "images.npy", architecture)
    assert ran.returncode == 0, ran.stderr
    metadata, found, first = json.loads(ran.stdout.splitlines()[-1])
    assert json.loads(metadata["classes"]) == classes
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(first, expected[:1], atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(301, 480), (37, 211)])
def test_timm_preprocesses_exactly_as_the_weights_do(height: int, width: int) -> None:
    timm = pytest.importorskip("timm")
    from inat_ft_exporters.timm import _input_config

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    for mode, how, share in (("crop", "bilinear", 224 / 232.5), ("crop", "bicubic", 0.875), ("squash", "bicubic", 1.0)):
        own = Preprocess(image_size=224, resize=mode, interpolation=how, crop_pct=share)
        assert torch.equal(timm.data.create_transform(**_input_config(own))(image), Transform(own)(image))


@pytest.mark.slow
def test_the_example_makes_the_pixels_of_the_weights_exactly(variant, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    run, files, v = variant
    done = export_run(run, tmp_path / "model.onnx")
    ran = in_a_process(EXAMPLE, done.file, *files)
    assert ran.returncode == 0, ran.stderr
    for line, row in zip(ran.stdout.splitlines(), probabilities(run, files), strict=True):
        found = [float(cell.split()[-1]) for cell in line.split("\t")[1:]]
        np.testing.assert_allclose(found, sorted(row, reverse=True)[:3], atol=1e-4 if v.resize == "weights" else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_example_needs_only_onnx_runtime_and_pillow(config, directories, photos, resize: str) -> None:
    pytest.importorskip("onnxruntime")
    options = {"optim__epochs": 2, "optim__lr": 2e-3, "strategy__name": "full", "data__image_size": 64}
    run = train(config(data__resize=resize, **options), directories)[1]
    done = export_run(run, format="onnx")
    ran = in_a_process(EXAMPLE, done.file, *photos)
    assert ran.returncode == 0, ran.stderr
    expected = probabilities(run, photos)
    assert np.ptp(expected, axis=0).max() > 0.3
    for line, row in zip(ran.stdout.splitlines(), expected, strict=True):
        found = dict(cell.split() for cell in line.split("\t")[1:])
        assert list(found) == [f"class{place}" for place in np.argsort(-row)]
        np.testing.assert_allclose([float(each) for each in found.values()], sorted(row, reverse=True), atol=0.02)


def test_the_example_is_short() -> None:
    text = EXAMPLE.read_text()
    imports = [each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Import | ast.ImportFrom)]
    modules = {each.module if isinstance(each, ast.ImportFrom) else each.names[0].name for each in imports}
    assert modules == {"json", "sys", "numpy", "onnxruntime", "PIL"}
    assert len([line for line in text.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [33, 64])
def test_timm_preprocesses_as_inat_ft_does(photos, resize, size: int) -> None:
    timm = pytest.importorskip("timm")
    from inat_ft_exporters.timm import _input_config

    other = {"squash": "crop", "crop": "squash"}[resize]
    own = Preprocess(image_size=size, resize=resize, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    config = _input_config(own)
    transform = timm.data.create_transform(**config, is_training=False)
    different = timm.data.create_transform(**_input_config(own.model_copy(update={"resize": other})))
    for file in photos:
        expected = Transform(own)(file)
        assert (transform(Image.open(file)) - expected).abs().mean() < 0.02
        assert (different(Image.open(file)) - expected).abs().mean() > 0.05
    assert own.resizing == Resizing(resize)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "densenet121", "timm:vit_tiny_patch16_224", "efficientnet_lite0", "cnn"]
)
@pytest.mark.slow
def test_a_hub_folder_is_for_timm_if_timm_has_the_architecture(config, directories, backbone: str) -> None:
    pytest.importorskip("timm")
    settings = {"optim__epochs": 1, "model__backbone": backbone, "data__image_size": 64, "strategy__name": "full"}
    run = train(config(**settings), directories)[1]
    done = export_run(run, format="hub-folder")
    names = json.loads((done.file / "config.json").read_text())
    card = (done.file / "README.md").read_text()
    if backbone == "cnn":
        assert "architecture" not in names and "import timm" not in card and names["label_names"][0] == "class0"
        with pytest.raises(UsageError, match="timm has no architecture with the weights of cnn"):
            export_run(run, format="timm")
    else:
        assert names["pretrained_cfg"]["input_size"] == [3, 64, 64] and "library_name: timm" in card
        assert export_run(run, format="timm").largest_difference < 1e-4
    images = torch.rand(2, 3, 64, 64)
    both = [inat_ft.load(path)[0](images) for path in (run, done.file / "model.safetensors")]
    assert torch.equal(*both)


def test_a_folder_with_other_files_is_not_replaced(run: Path, cli, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    ran = cli("export", run, "--format", "timm", "--out", "mine")
    assert ran.code == 2 and "the folder mine has files that this export does not write, such as notes.txt" in ran.err
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    ran = cli("export", run, "--format", "timm", "--out", "mine/notes.txt")
    assert ran.code == 2 and "mine/notes.txt is a file" in ran.err and "name a folder" in ran.err
    ran = cli("export", run, "--format", "onnx", "--out", "mine")
    assert ran.code == 2 and "mine is a folder" in ran.err and "name a file" in ran.err
    for _ in range(2):
        assert cli("export", run, "--out", "new.timm").code == 0
    assert sorted(path.name for path in (tmp_path / "new.timm").iterdir()) == ["config.json", "model.safetensors"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_weights_of_the_run_are_not_overwritten(trained: Path, cli) -> None:
    before = (trained / "model.safetensors").read_bytes()
    for name in ("safetensors", "torch-export"):
        ran = cli("export", trained, "--format", name, "--out", trained / "model.safetensors")
        assert ran.code == 2 and "belongs to the run" in ran.err
    ran = cli("export", trained, "--out", "copy.safetensors", "--json")
    assert ran.code == 0 and ran.json["largest_difference"] < 1e-5 and "url" not in ran.json
    assert (trained / "model.safetensors").read_bytes() == before == Path("copy.safetensors").read_bytes()


def test_a_suffix_without_a_format_is_refused(trained: Path, cli) -> None:
    ran = cli("export", trained, "--out", "model.tflite")
    assert ran.code == 2 and not Path("model.tflite").exists()
    assert "no format has the suffix of --out model.tflite" in ran.err and "add --format: " in ran.err
    assert cli("export", trained, "--out", "model.v2", "--format", "torch-export").code == 0


def test_files_of_a_run_are_not_overwritten(tmp_path: Path) -> None:
    for name in ("record.json", "predictions-test.csv", "model.onnx"):
        (tmp_path / name).write_text("{}")
    for name in ("record.json", "predictions-test.csv"):
        with pytest.raises(UsageError, match="belongs to the run"):
            check_output(tmp_path / name)
    check_output(tmp_path / "model.onnx")
    check_output(tmp_path / "predictions-new.csv")


def test_an_edited_model_card_is_kept(run: Path) -> None:
    pytest.importorskip("timm")
    (run / "README.md").write_text("my own words")
    done = export_run(run, format="hub-folder")
    assert (done.file / "README.md").read_text() == "my own words"
    assert (done.file / "curves.png").read_bytes() == (run / "curves.png").read_bytes()


def test_safetensors_have_a_default_file_beside_the_weights_of_the_run(run: Path, cli) -> None:
    weights = (run / "model.safetensors").read_bytes()
    ran = cli("export", run, "--format", "safetensors")
    assert ran.code == 0 and (run / "exported.safetensors").is_file(), ran.err
    assert (run / "model.safetensors").read_bytes() == weights


class Files(FolderExporter):
    suffix = ""

    def export(self, network, images, metadata, file: Path) -> None:
        """Not used."""

    def predict(self, file: Path, images: np.ndarray) -> np.ndarray:
        return images


def test_a_folder_that_a_killed_export_had_moved_aside_is_moved_back(tmp_path: Path) -> None:
    aside = tmp_path / ".model.12ab34cd.old"
    aside.mkdir()
    (aside / "weights").write_text("earlier")
    with pytest.raises(ZeroDivisionError), Files().writing(tmp_path / "model") as folder:
        (folder / "weights").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "weights").read_text() == "earlier"


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "disk"])
def test_a_full_disk_is_named_also_when_a_library_hides_it(tmp_path: Path, text: str) -> None:
    error = RuntimeError(text)
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match=r"cannot write .*model: No space left"), Files().writing(tmp_path / "model"):
        raise error
    assert not list(tmp_path.iterdir())


def test_the_root_of_the_file_system_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="/ cannot be replaced"), Files().writing(Path("/")):
        raise AssertionError


def test_a_network_that_timm_lacks_is_not_written_for_timm(trained: Path, cli) -> None:
    ran = cli("export", trained, "--format", "timm", "--out", "model")
    assert ran.code == 2 and "timm has no architecture with the weights of cnn" in ran.err
    assert not Path("model").exists()
