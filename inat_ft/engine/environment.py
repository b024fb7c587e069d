"""The software and hardware of a run, for its record: enough to repeat it, without personal data."""

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from inat_ft import __version__
from inat_ft.engine.device import Compute
from inat_ft.threads import num_cores

_PACKAGES = ("torchvision", "numpy", "pillow", "timm")


def environment(compute: Compute) -> dict[str, Any]:
    """Return package versions, platform, device and the git commit of the working directory, if there is one."""
    found: dict[str, Any] = {"inat_ft": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    system = f"{platform.system()} {platform.machine()}"
    return found | {"system": system, "device": compute.describe(), "cores": num_cores(), "git": _git_commit()}


def _git_commit() -> str | None:
    """Return the commit, with `-dirty` if tracked files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        ran = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None if ran.returncode == 0 else None


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the peak memory of the GPU, or of this process when training on a CPU. None on Windows without a GPU."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
    return None
