"""Read, download, fingerprint and save weights. Loading a file never runs code from it."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import torch
from torch import Tensor

from inat_ft.config import RunConfig
from inat_ft.crash import redact
from inat_ft.errors import WeightsError
from inat_ft.models.base import Preprocess
from inat_ft.models.net import Net
from inat_ft.records import atomic_write

_TIMEOUT_S = 15.0
_SAVE_ALONE = "in the program that wrote it, save only the weights: torch.save(model.state_dict(), 'weights.pth')"
_HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""Keys of a checkpoint that hold weights. Averaged weights come first, as timm and torchvision evaluate them."""
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_RENAMED = (  # by torchvision after it published the weights
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"mlp\.linear_1\."), "mlp.0."),
    (re.compile(r"mlp\.linear_2\."), "mlp.3."),
)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a .safetensors, .pth or .pt file, on the CPU, with the names in the file.

    A checkpoint of a training script is accepted when its weights are under a usual key, such as `state_dict` or `model`.
    No code from the file is run. Raises WeightsError with the file and the cause.
    """
    if not path.is_file():
        hint = "use --weights imagenet, none, or a .pth or .safetensors file"
        raise WeightsError(f"no such weights file: {path}", hint)
    loaded = _loaded(path)
    while isinstance(loaded, dict):
        held = next((loaded[key] for key in _HOLDERS if isinstance(loaded.get(key), dict) and loaded[key]), None)
        if held is None:
            break
        loaded = held
    values = loaded if isinstance(loaded, dict) else {}
    state = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} does not contain a state dict of tensors", _SAVE_ALONE)
    for name, tensor in state.items():
        if problem := _unusable(tensor):
            raise WeightsError(f"{path} contains unsupported weights: {name} is {problem}", _SAVE_ALONE)
    return state


def _loaded(path: Path) -> object:
    """Return the content of a file. Only plain values, tensors and argparse.Namespace are created."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # about protocols and types that are rejected below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers and parsers raise any exception on a damaged file
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> WeightsError:
    """Return the error for a file that cannot be read, without torch's advice to allow code from the file to run."""
    reason = str(error)
    if found := re.search(r"GLOBAL (\S+)", reason):
        return WeightsError(
            f"cannot read weights from {path}: it contains Python objects ({found[1]}), which are never loaded",
            _SAVE_ALONE,
        )
    if "TorchScript" in reason:
        return WeightsError(f"cannot read weights from {path}: it is a TorchScript program", _SAVE_ALONE)
    cause = (
        reason.splitlines()[0]
        if reason and "weights_only" not in reason and not isinstance(error, LookupError | TypeError | ValueError)
        else "it is damaged, or was not written by torch.save"
    )
    return WeightsError(f"cannot read weights from {path}: {cause}", "the file must contain a state dict of tensors")


def _unusable(tensor: Tensor) -> str:
    """Return why a tensor cannot be a weight, or an empty string."""
    if tensor.is_meta:
        return "a meta tensor without values"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    return "complex" if tensor.is_complex() else ""


def named_alike(state: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights under the parameter names of a network (`known`), in the given order.

    Prefixes of torch wrappers (torch.compile, FSDP) are removed. So is the prefix under which most of the known names are
    found, such as `module.` of DistributedDataParallel or `model.` of Lightning; tensors without that prefix belong to
    other parts of the checkpoint and are dropped. If no such prefix exists, all names are kept.
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
    """Return the current torchvision name of a weight, which may differ from the name in an older file."""
    if name not in known:
        for old, new in _RENAMED:
            name = old.sub(new, name)
    return name


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for other files. Raises WeightsError for a damaged file."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as opened:
            return dict(opened.metadata() or {})
    except Exception as error:  # parsers raise any exception on a damaged file
        raise _unreadable(path, error) from error


def fetch_weights(url: str, name: str = "") -> dict[str, Tensor]:
    """Return weights from torch's download folder, and download them first if they are missing.

    name: file name in that folder; by default the last part of the URL. If it ends with the first digits of a SHA-256, as
    in torchvision, the hash is verified. Raises WeightsError with the expected location and how to provide the file.
    """
    file = weights_file(url, name)
    if not file.is_file():
        sha256 = re.search(r"-([0-9a-f]{8,64})$", file.stem)
        shown = redact(url)
        timeout = socket.getdefaulttimeout()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            socket.setdefaulttimeout(_TIMEOUT_S)
            torch.hub.download_url_to_file(url, str(file), sha256 and sha256[1], progress=sys.stderr.isatty())
        except (RuntimeError, ValueError, OSError, HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()
            reason = redact((str(error).strip("<>") or type(error).__name__).splitlines()[0])
            raise WeightsError(
                f"the pretrained weights {file.name} are not in {_tilde(file.parent)} and cannot be downloaded from "
                f"{shown}: {reason}",
                f"on a machine with network access, download {shown}\nand copy it to {_tilde(file)}\n"
                f"(or set TORCH_HOME to a folder with hub/checkpoints/{file.name}), or pass a file: --weights FILE,\n"
                "or train from random weights: --weights none",
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
    return read_state(file)


def weights_file(url: str, name: str = "") -> Path:
    """Return where the weights of a URL are stored."""
    return Path(torch.hub.get_dir()) / "checkpoints" / (name or url.rsplit("/", 1)[1])


def _tilde(path: Path) -> str:
    home = os.path.expanduser("~")
    return str(path).replace(home, "~", 1) if str(path).startswith(home) else str(path)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the hexadecimal SHA-256 of names, dtypes, shapes and values, in the given order."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_model(file: Path, net: Net, config: RunConfig, preprocess: Preprocess, classes: Sequence[str]) -> None:
    """Write a network to a .safetensors file, atomically, with the names of the original architecture.

    The metadata contain what is required to build the network and to preprocess its input.
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
    """Sort the metadata of a .safetensors file by name, so that equal models give equal files.

    safetensors writes them in an order that differs between processes. The length of the header does not change.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, "the sorted header is longer than the one that safetensors wrote"
        opened.seek(8)
        opened.write(text.ljust(length))
