"""What a benchmark ends with: its figures as one line of JSON, with the machine and the versions that they hold for."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def hardware() -> str:
    """Processor, cores and, where there is one, GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    torch = sys.modules.get("torch")  # not imported for this: it would be the most of a benchmark's memory
    gpu = f", {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def tell(**figures: object) -> None:
    """Print the figures."""
    versions = {"python": platform.python_version(), "torch": version("torch"), "torchvision": version("torchvision")}
    print(json.dumps({"hardware": hardware(), **versions, **figures}))
