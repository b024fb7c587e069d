"""Every command in a process of its own, in the order of the README: no state of an earlier call can hide a fault."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import make_images

pytestmark = pytest.mark.slow

EXACT = ("--image-size", 32, "--epochs", 1, "--precision", "fp32")
CNN = ("--backbone", "cnn", "--set", "model.filters=16")


def test_every_command_works_in_a_process_of_its_own(process, tmp_path: Path) -> None:
    make_images(tmp_path / "photos")
    Path("sweep.yaml").write_text(
        yaml.safe_dump({"method": "grid", "parameters": {"lr": {"values": [1e-2, 1e-3]}, "epochs": {"value": 1}}})
    )
    small = ("--set", "model.backbone=cnn", "--set", "model.filters=16", "--set", "data.image_size=32")
    resnet = ("--backbone", "resnet18", "--weights", "none")
    for words in (
        ("split", "photos", "--test-fraction", "0.25"),
        ("split", "--check", "splits/photos.csv"),
        ("train", *CNN, *EXACT, "--name", "part-a"),
        ("train", "--mode", "head", "--dropout", "0.3", *resnet, *EXACT, "--name", "part-b"),
        ("train", "--mode", "partial", "--unfreeze-from", "layer4", *resnet, *EXACT, "--name", "part-c"),
        ("train", "--mode", "head", *resnet, *EXACT, "--dry-run"),
        ("train", *CNN, *EXACT, "--find-lr"),
        ("train", "--resume", "runs/part-a"),
        ("eval", "runs/part-a"),
        ("eval", "runs/part-b"),
        ("compare", "runs/part-a", "runs/part-b", "--html", "report.html"),
        ("sweep", "create", "sweep.yaml", *small, "--name", "search"),
        ("sweep", "run", "search"),
        ("sweep", "status", "search"),
        ("sweep", "list"),
        ("sweep", "best", "search"),
        ("sweep", "report", "search"),
        ("predict", "runs/part-b", "photos/class0", "--out", "predictions.csv"),
        ("export", "runs/part-b"),
        ("record", "new", "runs/part-a/predictions-test.csv", "--name", "again", "--out", "again.json"),
        ("compare", "again.json", "runs/part-b/record.json"),
        ("strategies",),
        ("strategies", "lora"),
        ("cache",),
        ("doctor",),
    ):
        ran = process(*words)
        assert ran.code == 0, f"{words}: {ran.err}"
    assert Path("report.html").stat().st_size > 10_000 and Path("runs/part-b/model.onnx").exists()


@pytest.mark.parametrize(
    "network",
    [
        ("--backbone", "resnet18", "--weights", "none", "--mode", "head"),
        ("--backbone", "resnet18", "--weights", "none", "--mode", "partial"),
        ("--backbone", "resnet18", "--weights", "none", "--mode", "full"),
        (*CNN, "--mode", "full"),
        ("--backbone", "vit_b_32", "--weights", "none", "--mode", "head"),
        ("--backbone", "timm:vit_tiny_patch16_224", "--weights", "none", "--mode", "head"),
        ("--backbone", "timm:convnext_atto", "--weights", "none", "--mode", "full"),
    ],
    ids=lambda words: f"{words[1]}-{words[-1]}",
)
def test_export_works_in_a_process_that_has_run_nothing_else(process, manifest_file: Path, network) -> None:
    trained = process("train", "--split", manifest_file, *network, *EXACT, "--name", "net")
    assert trained.code == 0, trained.err
    ran = process("export", "runs/net", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["largest_difference"] < 1e-4 and Path(ran.json["file"]).exists()


def test_a_network_with_nan_weights_is_refused_before_the_evaluation_counts(process, manifest_file: Path) -> None:
    from safetensors.torch import load_file, save_file

    assert process("train", "--split", manifest_file, *CNN, *EXACT, "--name", "net").code == 0
    file, record = Path("runs/net/model.safetensors"), Path("runs/net/record.json")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    name = next(key for key, tensor in state.items() if tensor.dim() == 4)
    state[name].fill_(float("nan"))
    save_file(state, file, metadata)
    before, ledger = record.read_text(), manifest_file.with_name(f"{manifest_file.name}.looks.jsonl")
    pluralize = ledger.read_text() if ledger.exists() else ""
    ran = process("eval", "runs/net")
    assert ran.code == 1 and "not finite" in ran.err and "Traceback" not in ran.err
    assert record.read_text() == before and (ledger.read_text() if ledger.exists() else "") == pluralize
    assert not Path("runs/net/predictions-test.csv").exists()
    assert process("predict", "runs/net", manifest_file.parent / "photos").code == 1
    json.loads(before)
