import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import inat_ft.cli.main
from inat_ft.cli import render
from inat_ft.config import RunConfig
from inat_ft.settings import load_config
from inat_ft.training import Directories

torch.set_num_threads(1)
settings.register_profile("inat_ft", deadline=None)  # how long an example takes depends on the machine
settings.load_profile("inat_ft")


def make_images(folder: Path, classes: int = 3, each: int = 20, size: int = 40, seed: int = 0) -> Path:
    """Class folders of noisy pictures, each class of a colour of its own, so that a tiny network can learn them."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        inside = folder / f"class{label}"
        inside.mkdir(parents=True)
        for number in range(each):
            grid = rng.integers(0, 255, (5, 5, 3))
            grid[..., label % 3] = 255 if label < 3 else 0
            picture = Image.fromarray(grid.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)
            picture.save(inside / f"{number:03d}.png")
    return folder


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own and never touches the user's caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INAT_FT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("INAT_FT_RUNS_DIR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images") / "photos")


@pytest.fixture(scope="session")
def manifest_file(images: Path) -> Path:
    out = images.parent / "photos.csv"
    subprocess.run(
        [sys.executable, "-m", "inat_ft", "split", str(images), "--test-fraction", "0.25", "--out", str(out)],
        check=True,
        capture_output=True,
    )
    return out


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories(tmp_path / "runs", tmp_path / "cache")


@pytest.fixture
def config(manifest_file: Path):
    """A function from `key=value` settings to a small, exact configuration."""

    def make(**settings: object) -> RunConfig:
        defaults: dict[str, object] = {
            "data.split": str(manifest_file),
            "data.image_size": 32,
            "model.backbone": "resnet18",
            "model.weights": "none",
            "strategy.name": "head",
            "optim.epochs": 2,
            "optim.batch_size": 8,
            "optim.lr": 1e-3,
            "compute.precision": "fp32",
            "compute.device": "cpu",
        }
        given = {key.replace("__", "."): value for key, value in settings.items()}
        return load_config(None, list((defaults | given).items()))

    return make


class Ran:
    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def cli(tmp_path: Path):
    """Run the command line as a process of its own."""

    def run(*words: object, **environment: str) -> Ran:
        command = [sys.executable, "-m", "inat_ft", *map(str, words)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return Ran(subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False))

    return run


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line inside the test process: fast, for tests in which no property of a process matters."""
    monkeypatch.setattr("inat_ft.cli.main.keep_memory", lambda: None)
    monkeypatch.setattr("inat_ft.cli.main.defer_compiler", lambda: None)

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["inat-ft", *map(str, words)])
        terminate = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        code = 0
        try:
            inat_ft.cli.main.run()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        finally:
            signal.signal(signal.SIGTERM, terminate)
            render.set_quiet(False)
        out, err = capsys.readouterr()
        return Ran(subprocess.CompletedProcess([], code, out, err))

    return run
