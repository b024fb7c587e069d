"""The last line of a benchmark: its figures as JSON, with the hardware and the versions that they were measured on."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(root: Path = ROOT) -> dict[str, str]:
    """Return the environment of a measured process, which runs the checkout in `root`.

    Python may write bytecode, as after an installation; otherwise it would compile every module in every run.
    """
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join((str(root), str(root / "plugins")))}


def hardware() -> str:
    """Return the processor, the number of cores and the GPU, if there is one, with its driver and clocks."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    torch = sys.modules.get("torch")  # not imported here: it would take most of the memory of some benchmarks
    gpu = ""
    if torch and torch.cuda.is_available():
        gpu = f", {torch.cuda.get_device_name()}{_driver()}"
    elif torch and torch.backends.mps.is_available():
        gpu = ", Apple GPU"
    return f"{cpu}, {os.cpu_count()} cores{gpu}"


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm", "--format=csv,noheader"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    driver, clock, most = (part.strip() for part in ran.stdout.splitlines()[0].split(","))
    return f", driver {driver}, SM clock {clock} of {most}"


def report(**figures: object) -> None:
    """Print the figures as one line of JSON."""
    versions = {"python": platform.python_version(), "torch": version("torch"), "torchvision": version("torchvision")}
    print(json.dumps({"hardware": hardware(), **versions, **figures}))
