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

import inat_ft
import inat_ft.cli.main
from inat_ft.cli import render
from inat_ft.config import RunConfig
from inat_ft.settings import load_config
from inat_ft.training import Directories, train
from tests.refusing import refused  # noqa: F401 - a fixture

torch.set_num_threads(1)
os.fsync = lambda descriptor: None  # no test ends with a power failure
settings.register_profile("inat_ft", deadline=None)  # how long an example takes depends on the machine
settings.load_profile("inat_ft")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a background job; child processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def manifest_file(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INAT_FT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        inat_ft.split(images, out=images.parent / "photos.csv", test_fraction=0.25)
        return images.parent / "photos.csv"


@pytest.fixture
def directories(tmp_path: Path) -> Directories:
    return Directories(tmp_path / "runs", tmp_path / "cache")


@pytest.fixture
def config(manifest_file: Path):
    """A function from `key=value` settings to an exact configuration with a small network, unless a test names another."""

    def make(**settings: object) -> RunConfig:
        defaults: dict[str, object] = {
            "data.split": str(manifest_file),
            "data.image_size": 32,
            "model.backbone": "cnn",
            "model.weights": "none",
            "strategy.name": "head",
            "optim.epochs": 2,
            "optim.batch_size": 8,
            "optim.lr": 1e-3,
            "compute.precision": "fp32",
            "compute.device": "cpu",
            "track.files": False,
        }
        given = {key.replace("__", "."): value for key, value in settings.items()}
        if given.get("model.backbone", "cnn") == "cnn":
            defaults["model.filters"] = 16
        return load_config(None, list((defaults | given).items()))

    return make


class Ran:
    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def process():
    """Run the command line as a process of its own, for tests of what a process does: its streams, signals and imports."""

    def run(*words: object, **environment: str) -> Ran:
        command = [sys.executable, "-m", "inat_ft", *map(str, words)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        return Ran(subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False))

    return run


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line inside the test process, which has imported torch."""
    monkeypatch.setattr("inat_ft_startup.startup.prepare_process", lambda: None)
    leave, here = os._exit, os.getpid()  # a second Ctrl-C, such as of W&B, ends child processes but not the tests
    monkeypatch.setattr(os, "_exit", lambda code: None if os.getpid() == here else leave(code))

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["inat-ft", *map(str, words)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        hook = sys.unraisablehook
        capsys.readouterr()
        code = 0
        try:
            inat_ft.cli.main.run()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.unraisablehook = hook
            render.set_quiet(False)
        out, err = capsys.readouterr()
        return Ran(subprocess.CompletedProcess([], code, out, err))

    return run


@pytest.fixture
def invoke(cli):
    """Run the command line like `cli`."""
    return cli


@pytest.fixture(scope="session")
def trained(manifest_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of two epochs, with all that is saved."""
    folder = tmp_path_factory.mktemp("trained")
    values = {
        "data.split": str(manifest_file),
        "data.image_size": 32,
        "model.backbone": "cnn",
        "model.weights": "none",
        "strategy.name": "full",
        "optim.epochs": 2,
        "optim.batch_size": 8,
        "compute.precision": "fp32",
        "compute.device": "cpu",
        "compute.cache": "none",
    }
    directories = Directories(folder / "runs", folder / "cache")
    return train(load_config(None, list(values.items())), directories)[1]
