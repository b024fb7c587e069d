"""What a record says of the machine: enough to repeat a run, and nothing about who ran it."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from inat_ft import __version__
from inat_ft.engine.device import Compute
from inat_ft.threads import num_cores

_PACKAGES = ("torchvision", "numpy", "pillow", "timm")


def environment(compute: Compute) -> dict[str, Any]:
    """Versions, platform, device and the commit of the working directory, if it is a git repository."""
    found: dict[str, Any] = {"inat_ft": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:
            continue
    found |= {
        "system": f"{platform.system()} {platform.machine()}",
        "device": compute.describe(),
        "cores": num_cores(),
        "git": _git_state(),
    }
    return found


def _git_state() -> str | None:
    """Commit, with `-dirty` when tracked files differ from it; None outside a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None if ran.returncode == 0 else None


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: of the GPU where one is used, otherwise of this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
