"""Reading, finding and fingerprinting weights. Loading a file never runs code from it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inat_ft.config import RunConfig
from inat_ft.errors import DataError, WeightsError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.records import replacing


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors, .pth or .pt file, on the CPU. Raises WeightsError naming file and cause.

    A checkpoint that holds its weights under `state_dict` or `model`, as training scripts write it, is understood.
    """
    if not path.is_file():
        raise WeightsError(
            f"no such weights file: {path}", "use --weights imagenet, none, or a .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise what they like on a damaged file
        raise _unreadable(path, error) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds no state dict of tensors", "save model.state_dict() in it")
    return {str(name).removeprefix("module."): tensor for name, tensor in loaded.items()}


def _unreadable(path: Path, error: Exception) -> WeightsError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return WeightsError(f"cannot read weights from {path}: {cause}", "it must be a state dict of tensors")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty for other files. Raises WeightsError for a damaged one."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except Exception as error:  # parsers raise what they like on a damaged file
        raise _unreadable(path, error) from error


def fetch_weights(url: str, name: str = "") -> dict[str, Tensor]:
    """Weights from torch's own download folder, fetched first when they are not there.

    name: of the file there; by default the address's own. Where it ends in the start of a SHA-256, as torchvision's do,
    that is checked. Raises WeightsError that says where the file is looked for and how to bring it.
    """
    from inat_ft.data.download import download

    file = weights_file(url, name)
    folder = file.parent
    sha256 = re.search(r"-([0-9a-f]{8,64})$", file.stem)
    if not file.is_file():
        try:
            download(url, file, sha256_prefix=sha256[1] if sha256 else None)
        except DataError as error:
            raise WeightsError(
                f"the pretrained weights {file.name} are not in {_tilde(folder)} and cannot be fetched: {error.message}",
                f"on a machine with network, fetch {url}\nand put it there as {_tilde(file)}\n"
                f"(or set TORCH_HOME to the folder that has hub/checkpoints/{file.name}), or name a file: --weights FILE,\n"
                "or start from random weights: --weights none",
            ) from error
    return read_state(file)


def weights_file(url: str, name: str = "") -> Path:
    """Where the weights of an address are kept."""
    return Path(torch.hub.get_dir()) / "checkpoints" / (name or url.rsplit("/", 1)[1])


def _tilde(path: Path) -> str:
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if str(path).startswith(home) else str(path)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 in hex of names, types, shapes and values, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(file: Path, net: Net, config: RunConfig, preprocess: Preprocess, classes: Sequence[str]) -> None:
    """Write a network as .safetensors, atomically, by the names that the original architecture has.

    Its metadata say how to build the network and how to make its input.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state().items()}
    metadata = {
        "format": "pt",
        "model": config.model.model_copy(update={"weights": "none"}).model_dump_json(),
        "strategy": config.strategy.model_dump_json(),
        "preprocess": preprocess.model_dump_json(),
        "classes": json.dumps(list(classes), ensure_ascii=False),
    }
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata)
