"""Weights from the checkpoints of other programs, and files that must be refused."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import densenet121, resnet18, vit_b_32

from inat_ft.errors import WeightsError
from inat_ft.models.base import Preprocess
from inat_ft.models.build import build_model
from inat_ft.models.weights import named_alike, read_metadata, read_state, save_model
from inat_ft.settings import load_config
from inat_ft.testing import tiny_net
from tests.models.families import no_memory

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def source() -> nn.Module:
    torch.manual_seed(3)
    return resnet18(num_classes=7)


def built(file: Path, backbone: str = "resnet18") -> State:
    config = load_config(None, [("model.backbone", backbone), ("model.weights", str(file))])
    return build_model(config.model, 4, 0).net.original_state_dict()


def with_prefix(prefix: str) -> Callable[[nn.Module], object]:
    return lambda model: {"state_dict": {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}}


def torchvision_reference(model: nn.Module) -> object:
    """As its `references/classification/train.py` writes it."""
    return {
        "model": model.state_dict(),
        "optimizer": torch.optim.SGD(model.parameters(), 0.1).state_dict(),
        "lr_scheduler": {"last_epoch": 3, "base_lrs": [0.1]},
        "epoch": 3,
        "args": argparse.Namespace(model="resnet18", lr=0.1, workers=None, opt="sgd"),
    }


def torchvision_averaged(model: nn.Module) -> object:
    """The same with a mean of the weights, which is what it evaluates."""
    other = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    return {"model": other, "model_ema": AveragedModel(model).state_dict(), "args": argparse.Namespace()}


def lightning(model: nn.Module) -> object:
    names = {f"net.{name}": tensor for name, tensor in model.state_dict().items()}
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {**names, "loss.weight": torch.ones(7)},
        "hyper_parameters": {"lr": 0.1, "arch": "resnet18"},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
    }


def compiled_blocks(model: nn.Module) -> object:
    """Only a part was compiled."""
    return {name.replace("layer1.", "layer1._orig_mod."): tensor for name, tensor in model.state_dict().items()}


CHECKPOINTS: dict[str, Callable[[nn.Module], object]] = {
    "plain": lambda model: model.state_dict(),
    "torchvision": torchvision_reference,
    "torchvision ema": torchvision_averaged,
    "lightning": lightning,
    "timm": lambda model: {"epoch": 2, "arch": "resnet18", "state_dict": model.state_dict(), "metric": 0.5},
    "timm ema": lambda model: {"state_dict": {"x": torch.ones(1)}, "state_dict_ema": model.state_dict()},
    "model_state_dict": lambda model: {"model_state_dict": model.state_dict(), "loss": torch.tensor(1.0)},
    "nested": lambda model: {"model": {"state_dict": model.state_dict()}},
    "compiled blocks": compiled_blocks,
    "half": lambda model: {name: tensor.half() for name, tensor in model.state_dict().items()},
    "without counters": lambda model: {k: v for k, v in model.state_dict().items() if "num_batches" not in k},
    **{
        prefix: with_prefix(prefix)
        for prefix in ("module.", "_orig_mod.", "model.", "net.", "backbone.", "module.model.", "model._orig_mod.")
    },
    "_orig_mod.module.": with_prefix("_orig_mod.module."),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_a_checkpoint_of_another_program_gives_its_weights(kind: str, source: nn.Module, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[kind](source), tmp_path / "w.pth")
    state, given = built(tmp_path / "w.pth"), source.state_dict()
    wrong = [
        name
        for name in given
        if not name.startswith("fc.")
        and name in state
        and not torch.allclose(state[name].float(), given[name].float(), atol=1e-3 if kind == "half" else 0)
    ]
    assert set(state) == set(given) and not wrong
    assert state["fc.weight"].shape == (4, 512)


def test_names_of_another_network_are_left_as_they_are() -> None:
    known = resnet18().state_dict()
    given = {f"features.{name}": torch.zeros(1) for name in ("conv1.weight", "a.b", "c.d")}
    assert named_alike(given, known) == given


@pytest.mark.parametrize(("name", "make"), [("densenet121", densenet121), ("vit_b_32", vit_b_32)])
def test_names_from_before_torchvision_renamed_its_modules_are_understood(
    name: str, make: Callable[[], nn.Module]
) -> None:
    with no_memory():
        now = make().state_dict()
    published = {}
    for each, tensor in now.items():
        old = each.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")
        for part in ("norm1", "norm2", "conv1", "conv2") if "denselayer" in each else ():
            old = old.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        published[old] = tensor
    assert set(published) != set(now) and set(named_alike(published, now)) == set(now)


class Bomb:
    def __init__(self, to: Path) -> None:
        self.to = to

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, (f"touch {self.to}",))


BAD: dict[str, Callable[[Path], object]] = {
    "code": lambda to: {"state_dict": Bomb(to)},
    "code beside weights": lambda to: {"state_dict": resnet18().state_dict(), "more": Bomb(to)},
    "a whole module": lambda to: resnet18(),
    "numpy": lambda to: {"model": resnet18().state_dict(), "accuracy": np.float64(0.5)},
    "no tensors": lambda to: {"state_dict": {"a": 1}},
    "a list": lambda to: [torch.zeros(2)],
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_more_than_weights_is_refused_without_running_it(kind: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(BAD[kind](tmp_path / "exploded"), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"w\.pth") as caught:
        read_state(tmp_path / "w.pth")
    said = f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "exploded").exists()
    assert "weights_only" not in said and "\x1b" not in said and "\n" not in said
    assert "torch.save(model.state_dict(), 'weights.pth')" in caught.value.hint


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="it is a TorchScript program") as caught:
        read_state(tmp_path / "w.pt")
    assert "weights_only" not in caught.value.message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.char(), "is int8, not float32"),
        (lambda tensor: tensor.bool(), "is bool, not float32"),
        (lambda tensor: tensor.to(torch.float8_e4m3fn), "is float8_e4m3fn, not float32"),
        (lambda tensor: tensor.to(torch.complex64), "is complex"),
        (lambda tensor: tensor.to_sparse(), "is sparse"),
        (lambda tensor: tensor.to("meta"), "is a meta tensor"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), "is quantized"),
        (lambda tensor: tensor * float("nan"), "not finite, in layer1.0.conv1.weight"),
        (lambda tensor: tensor * float("inf"), "not finite, in layer1.0.conv1.weight"),
    ],
    ids=["int8", "bool", "float8", "complex", "sparse", "meta", "quantized", "nan", "inf"],
)
def test_weights_of_another_type_or_without_values_are_refused(
    change: Callable[[Tensor], Tensor], said: str, source: nn.Module, tmp_path: Path
) -> None:
    state = dict(source.state_dict())
    state["layer1.0.conv1.weight"] = change(state["layer1.0.conv1.weight"])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=said) as caught:
        built(tmp_path / "w.pth")
    assert "layer1.0.conv1.weight" in caught.value.message and caught.value.exit_code == 1


def test_types_are_checked_in_safetensors_too_and_counters_stay_whole(source: nn.Module, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file({**state, "bn1.weight": state["bn1.weight"].to(torch.int32)}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"bn1\.weight is int32, not float32"):
        built(tmp_path / "a.safetensors")
    save_file({**state, "bn1.num_batches_tracked": torch.tensor(0.5)}, tmp_path / "b.safetensors")
    with pytest.raises(WeightsError, match=r"bn1\.num_batches_tracked is float32, not int64"):
        built(tmp_path / "b.safetensors")


def test_equal_models_are_equal_files_in_every_process(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from inat_ft.models.base import Preprocess
from inat_ft.models.weights import save_model
from inat_ft.settings import load_config
from inat_ft.testing import tiny_net
save_model(Path(sys.argv[1]), tiny_net(), load_config(None, []), Preprocess(), ("a", "Käfer", 'say "x"'))
"""
    save_model(tmp_path / "0.safetensors", tiny_net(), load_config(None, []), Preprocess(), ("a", "Käfer", 'say "x"'))
    for number in (1, 2):
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{number}.safetensors"], check=True)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 3 and len({hashlib.sha256(file.read_bytes()).hexdigest() for file in files}) == 1
    metadata = read_metadata(files[0])
    assert set(metadata) == {"format", "model", "strategy", "preprocess", "classes"}
    own, back = tiny_net().original_state_dict(), read_state(files[0])
    assert set(back) == set(own) and all(torch.equal(back[name], own[name]) for name in own)
