"""Reading, finding and fingerprinting weights. Loading a file never runs code from it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inat_ft.config import RunConfig
from inat_ft.errors import DataError, WeightsError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.records import atomic_write

_SAVE_ALONE = "in the program that made it, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
_HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Where training scripts keep weights in a checkpoint; averaged ones come first, as timm and torchvision evaluate them."""
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RENAMED = (  # by torchvision since it published the weights
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"mlp\.linear_1\."), "mlp.0."),
    (re.compile(r"mlp\.linear_2\."), "mlp.3."),
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pth or .pt file, on the CPU, by the names that the file has.

    A checkpoint of a training script is understood when it keeps its weights under a usual key, such as `state_dict` or
    `model`. No code from the file is run. Raises WeightsError naming file and cause.
    """
    if not path.is_file():
        raise WeightsError(
            f"no such weights file: {path}", "use --weights imagenet, none, or a .pth or .safetensors file"
        )
    loaded = _loaded(path)
    while isinstance(loaded, dict):
        held = next((loaded[key] for key in _HOLDERS if isinstance(loaded.get(key), dict) and loaded[key]), None)
        if held is None:
            break
        loaded = held
    values = loaded if isinstance(loaded, dict) else {}
    state = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no state dict of tensors", _SAVE_ALONE)
    for name, tensor in state.items():
        if problem := _unusable(tensor):
            raise WeightsError(f"{path} holds weights that cannot be used: {name} is {problem}", _SAVE_ALONE)
    return state


def _loaded(path: Path) -> object:
    """Return what a file holds. Of Python objects only plain values, tensors and argparse.Namespace are made."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of protocols and types that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise what they like on a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    """Say why a file cannot be read. torch's own advice, to let the file run its code, is left out."""
    said = str(error)
    if found := re.search(r"GLOBAL (\S+)", said):
        return WeightsError(
            f"cannot read weights from {path}: it holds Python objects besides tensors ({found[1]}), which are never loaded",
            _SAVE_ALONE,
        )
    if "TorchScript" in said:
        return WeightsError(f"cannot read weights from {path}: it is a TorchScript program", _SAVE_ALONE)
    cause = (
        said.splitlines()[0] if said and "weights_only" not in said else "it is damaged, or was not made by torch.save"
    )
    return WeightsError(f"cannot read weights from {path}: {cause}", "it must be a state dict of tensors")


def _unusable(tensor: Tensor) -> str:
    """Return what makes a tensor unfit to be a weight of any network, or an empty string."""
    if tensor.is_meta:
        return "a meta tensor without values"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    return "complex" if tensor.is_complex() else ""


def named_alike(state: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of a network whose tensors are known, in the order given.

    Wrappers of torch (torch.compile, FSDP) and the one prefix under which most of the network's names are found, such as
    `module.` of DistributedDataParallel or `model.` of Lightning, are removed; what stands elsewhere belongs to other parts
    of the checkpoint and is left out. Without such a prefix all names stay.
    """
    plain = {_current(_WRAPPERS.sub("", name), known): tensor for name, tensor in state.items()}
    counts: Counter[str] = Counter()
    for name in plain:
        starts = (0, *(found.end() for found in re.finditer(r"\.", name)))
        counts.update(name[:start] for start in starts if name[start:] in known)
    prefix = max(counts, key=lambda each: (counts[each], -len(each)), default="")
    if counts[prefix] <= len(known) / 2:
        return plain
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}


def _current(name: str, known: Mapping[str, Tensor]) -> str:
    """Return the name that torchvision gives a weight today, which may differ from that in a file it published."""
    if name not in known:
        for old, new in _RENAMED:
            name = old.sub(new, name)
    return name


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
    from inat_ft.download.http import download

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

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.original_state_dict().items()}
    metadata = {
        "format": "pt",
        "model": config.model.model_copy(update={"weights": "none"}).model_dump_json(),
        "strategy": config.strategy.model_dump_json(),
        "preprocess": preprocess.model_dump_json(),
        "classes": json.dumps(list(classes), ensure_ascii=False),
    }
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def _sort_metadata(file: Path) -> None:
    """Put the metadata of a .safetensors file into the order of their names, so that equal models are equal files.

    safetensors writes them in an order that differs from process to process. The header keeps its length.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the sorted header is longer than the one that safetensors wrote"
        opened.seek(8)
        opened.write(text.ljust(length))
