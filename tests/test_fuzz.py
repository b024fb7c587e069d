"""The readers of files, with damaged and hostile content: they return a value or raise an error that names the file.

By default all targets together take ten minutes, one after the other. To run them for an hour:

    INAT_FT_FUZZ_SECONDS=3600 pytest tests/test_fuzz.py -m slow

The inputs of a round are determined by its number, so a failure occurs again. FOUND lists inputs that once failed.
"""

import io
import json
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from inat_ft_datasets.http import _Download
from inat_ft_datasets.unzip import unpack
from inat_ft_folds.result import CrossValidation
from inat_ft_groups.assignment import assign_groups
from inat_ft_importers.huggingface import from_trainer_state
from inat_ft_importers.predictions import from_predictions
from inat_ft_importers.wandb import from_wandb
from inat_ft_insights.audit_page import _filled
from inat_ft_insights.corrections import read_corrections
from inat_ft_runs.details import as_dict, print_details
from inat_ft_runs.folder import read_runs
from inat_ft_runs.page import write_page
from inat_ft_runs.select import COLUMNS, condition, sort_runs
from inat_ft_sweeps.folder import create, list_sweeps, open_sweep
from inat_ft_sweeps.parsing import BUILT_IN, read_spec
from inat_ft_taxa.taxonomy import read_lineages
from inat_ft_tune.state import read_state
from inat_ft_tune.tune import parse_duration
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from inat_ft.data.manifest import read_manifest
from inat_ft.data.sources.base import ImageList, ReadOptions
from inat_ft.data.sources.csv_file import CsvFile
from inat_ft.engine.checkpoint import load_checkpoint
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState
from inat_ft.errors import InatFtError
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.predict import _files, read_model
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.images.decode import load_image
from inat_ft.records import read_record
from inat_ft.settings import dump_config, load_config, parse_override
from inat_ft.setup import Setup, prepare
from inat_ft.training import Directories, train
from inat_ft.yaml_io import dump_yaml
from tests.fuzzing import Target, as_json, as_torch, as_yaml, check

SECONDS = float(os.environ.get("INAT_FT_FUZZ_SECONDS", "600"))
"""Time of all targets together."""
ROUND = 100
"""Inputs of a round."""


@pytest.fixture(scope="module")
def run(manifest_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network: hypothesis keeps many inputs in memory, and those of a usual network have megabytes."""
    folder = tmp_path_factory.mktemp("fuzzed")
    tiny = {"model.filters": 16, "model.organisation": "same", "model.dense": 8, "data.image_size": 32}
    exact = {"compute.precision": "fp32", "compute.device": "cpu", "compute.cache": "none", "optim.epochs": 2}
    given = {"data.split": str(manifest_file), "model.backbone": "cnn", "model.weights": "none", **tiny, **exact}
    config = load_config(None, [*given.items(), ("strategy.name", "full")])
    return train(config, Directories(folder / "runs", folder / "cache"))[1]


@pytest.fixture(scope="module")
def setup(run: Path) -> Setup:
    return prepare(load_config(run / "config.yaml"))


def make_target(  # noqa: C901 - one case for each reader
    name: str, run: Path, manifest_file: Path, setup: Setup
) -> Target:
    record = json.loads((run / "record.json").read_text())
    config = load_config(run / "config.yaml")
    sweep = {**BUILT_IN, "early_terminate": {"type": "hyperband", "min_iter": 2}, "name": "x"}
    sweep["parameters"] = {**sweep["parameters"], "optim": {"parameters": {"weight_decay": {"min": 0.0, "max": 0.5}}}}
    state = {"log_history": [{"epoch": 1.0, "loss": 2.0}, {"epoch": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5}]}
    history = [
        {"Step": 0, "r - epoch": 1, "r - val_accuracy": 0.5},
        {"Step": 1, "r - epoch": 2, "r - val_accuracy": 0.6},
    ]
    csv = "Step,r - epoch,r - val_accuracy,r - val_accuracy__MIN\n0,1,0.5,0.5\n1,2,0.6,0.6\n"
    model = (run / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", model[:8])[0]
    if name == "metadata":
        with safe_open(run / "model.safetensors", "pt") as opened:
            metadata = {key: json.loads(text) for key, text in opened.metadata().items() if key != "format"}
        state_dict = load_file(run / "model.safetensors")
    elif name == "checkpoint tree":
        checkpoint = torch.load(run / "resume.pt", weights_only=True)

    def load(file: Path) -> None:
        shape = len(setup.manifest.rows("val")), len(setup.manifest.classes)
        identity = torch.load(run / "resume.pt", weights_only=True)["identity"]
        load_checkpoint(file, TrainState(EarlyStopping(3)), setup.plan, setup.config.optim, identity, shape)

    def text(value: Any) -> Any:
        return {str(key): inner if isinstance(inner, str) else json.dumps(inner) for key, inner in value.items()}

    match name:
        case "config":
            return Target(name, load_config, dump_config(config).encode(), config.model_dump(mode="json"), as_yaml)
        case "sweep":
            return Target(name, read_spec, dump_yaml(sweep).encode(), sweep, as_yaml)
        case "manifest":
            return Target(name, read_manifest, manifest_file.read_bytes())
        case "predictions":
            valid = (run / "predictions-val.csv").read_bytes()
            return Target(name, lambda file: (read_predictions(file), from_predictions(file, "x", file)), valid)
        case "record":
            return Target(name, lambda file: (read_record(file), compare([file, run])), as_json(record), record)
        case "W&B CSV":
            return Target(name, lambda file: from_wandb(file.rename("x.csv"), "x"), csv.encode())
        case "W&B JSON":
            return Target(name, lambda file: from_wandb(file, "x"), as_json(history), history)
        case "trainer state":
            return Target(name, lambda file: from_trainer_state(file, "x"), as_json(state), state)
        case "model":
            header = model[: 8 + length] + model[8 + length :][:4096]
            return Target(name, lambda file: read_model(file.rename("x.safetensors")), header)
        case "metadata":
            return Target(
                name,
                lambda file: read_model(file.rename("x.safetensors")),
                model,
                metadata,
                lambda value: save(state_dict, text(value) if isinstance(value, dict) else {}),
            )
        case "checkpoint":
            return Target(name, load, (run / "resume.pt").read_bytes())
        case "checkpoint tree":
            return Target(name, load, as_torch(checkpoint), checkpoint, as_torch)
    return {**folders(run), **lists("images")}[name]


NAMES = [
    *("config", "sweep", "manifest", "predictions", "record", "W&B CSV", "W&B JSON", "trainer state"),
    *("model", "metadata", "checkpoint", "checkpoint tree", "archive", "JPEG", "PNG", "GIF"),
    *("images CSV", "boxes CSV", "groups CSV", "verdicts CSV", "taxa CSV", "words", "download"),
    *("run record", "run config", "run history", "folds", "tune", "sweep folder", "journal"),
]

FOUND: list[tuple[str, bytes]] = [
    # target, content: inputs that once failed
    ("config", b"optim: &a [*a]"),
    ("sweep", b"method: random\nparameters: {lr: &a {values: [1], more: *a}}"),
    ("sweep", b"method: random\nparameters: {lr: {distribution: [uniform], min: 0, max: 1}}"),
    ("trainer state", b'{"log_history": [{"epoch": 1' + b"0" * 400 + b"}]}"),
    ("W&B CSV", b"epoch,val_accuracy\n1e308,0.5\n"),
    ("config", b"data: {split: /" + b"x" * 300 + b"}"),
    ("run record", b'{"name": "x", "best_epoch": 9, "history": [{"epoch": 1}]}'),
    ("run history", b"\xff\xfe\n"),
    ("run history", b"[" * 100_000),
    ("sweep folder", b"[" * 100_000),
    ("download", b"[" * 100_000),
    ("download", b'{"url": "http://h/x.zip", "total": "5"}'),
]


def placed(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return a reader of a file that has to have this path."""

    def read_there(file: Path) -> object:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        return read(Path(shutil.copyfile(file, name)))

    return read_there


def list_runs(file: Path) -> None:
    """Do all that `inat-ft runs` does with the folder of a run."""
    (file.parent / "config.yaml").touch()  # makes the folder a run
    runs = read_runs(file.parent.parent)
    assert runs
    for run in runs:
        [column(run) for column in COLUMNS.values()]
        as_dict(run)
        print_details(run)
    for key in ("val_accuracy", "created", "optim.lr", "name"):
        sort_runs(runs, key)
    write_page(runs, file.parent.parent, Path("runs.html"))


def list_sweep(file: Path) -> None:
    list_sweeps(file.parent.parent)
    open_sweep("s", file.parent.parent)


def unpack_here(file: Path) -> None:
    shutil.rmtree("unpacked", ignore_errors=True)
    unpack(file, Path("unpacked"), "photos", lambda done, total: None)
    assert all(path.resolve().is_relative_to(Path("unpacked").resolve()) for path in Path("unpacked").rglob("*"))


def lists(images: str) -> dict[str, Target]:
    """Return the CSV files that people write by hand, and the words of a command line."""
    listed = ImageList(Path(images), "CSV", "x")
    for number in range(3):
        listed.add(f"{number}.png", "ab"[number % 2])
    table = 'path,label,subset,x,y,w,h\na.png,a,train,0,0,0.5,1\n\'=b.png,b,val,,,,\n"c,d.png",b,test,0.1,0.2,0.3,0.4\n'
    words = "optim.lr=1e-3 1h30m val_accuracy>=0.9 track.project=[a, {b: c}]"
    found = [
        Target("images CSV", placed("i.csv", lambda file: CsvFile().read(file, ReadOptions())), table.encode()),
        Target("boxes CSV", placed("b.csv", _files), table.encode()),
        Target(
            "groups CSV",
            placed("g.csv", lambda file: assign_groups(listed, str(file))),
            b"path,group\n0.png,x\n1.png,\n",
        ),
        Target(
            "verdicts CSV",
            lambda file: (_filled(file), read_corrections(file, ("a", "b"))),
            b"path,subset,label,verdict\n0.png,train,a,ok\n1.png,val,b,drop\n2.png,val,a,b\n",
        ),
        Target("taxa CSV", read_lineages, b"label,family,genus,species\na,Felidae,Felis,catus\nb,Canidae,,\n"),
        Target("words", read_words, words.encode()),
    ]
    return {target.name: target for target in found}


def read_words(file: Path) -> None:
    text = file.read_text(encoding="utf-8", errors="surrogateescape")
    readers = (parse_override, lambda word: load_config(None, [parse_override(word)]), parse_duration, condition)
    for word in (text, *text.split(" ")):
        for read in readers:
            try:
                read(word)
            except InatFtError as error:
                assert error.message.strip()


def download_of(name: str) -> _Download:
    Path(f"{name}.part").write_bytes(b"12345")
    return _Download(f"http://h/{name}", Path(name), None, False, 1.0, 0.0, lambda done, total: None)


def journal(sweeps: Path) -> Path:
    """Return the journal of a new sweep."""
    if not sweeps.exists():
        create(read_spec(None), sweeps, "s")
    return next((sweeps / "s").glob("*journal*[!k]"))


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("photos/a/1.png", "photos/b/2.png", "photos/empty/", "other.txt"):
            packed.writestr(name, b"image" * 20)
    return out.getvalue()


def picture(format: str) -> bytes:
    out, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def folders(run: Path) -> dict[str, Target]:
    """Return the files in the folders of runs, cross-validations, tunings, sweeps and downloads."""
    record = json.loads((run / "record.json").read_text())
    config = load_config(run / "config.yaml").model_dump(mode="json")
    lines = "".join(json.dumps(epoch) + "\n" for epoch in record["history"])
    spread = {"mean": 0.5, "deviation": 0.1, "lowest": 0.4, "highest": 0.6, "values": [0.4, 0.6]}
    fold = {"fold": 1, "run": "cv-fold-1", "num_train": 3, "num_val": 2, "best_epoch": 1, "seconds": 1.0}
    summary = {"name": "cv", "created": "2026", "folds": 2, "seed": 0, "split": record["split"], "complete": True}
    summary |= {"metrics": {"accuracy": spread}, "runs": [fold, fold], "predictions": "p.csv"}
    trial = {"name": "head-1", "stage": "heads", "strategy": "head", "params": {"optim.lr": 0.1}, "seed": 0}
    trial |= {"directory": "t/runs/head-1", "status": "done", "value": 0.5, "epochs": 1, "epoch_s": [0.1]}
    state = {"data": "photos", "settings": [["optim.lr", 0.1]], "strategies": ["full"], "seed": 0, "budget_s": 60}
    state |= {"trials": [trial], "chosen": "head-1", "run": "t/runs/head-1", "times": {"heads": {"taken": 1.0}}}
    log = journal(run.parent / "sweeps")
    note = {"url": "http://h/x.zip", "tag": "", "modified": "", "total": 5}
    found = [
        Target("run record", placed("runs/r/record.json", list_runs), json.dumps(record).encode(), record),
        Target("run config", placed("broken/r/config.yaml", list_runs), dump_yaml(config).encode(), config, as_yaml),
        Target("run history", placed("broken/r/metrics.jsonl", list_runs), lines.encode()),
        Target(
            "folds", placed("cv/cross-validation.json", CrossValidation.open), json.dumps(summary).encode(), summary
        ),
        Target("tune", placed("t/tune.json", lambda file: read_state(file.parent)), json.dumps(state).encode(), state),
        Target("sweep folder", placed("sweeps/s/sweep.json", list_sweep), b'{"id": "s"}', {"id": "s"}),
        Target("journal", placed(f"sweeps/s/{log.name}", list_sweep), log.read_bytes()),
        Target("archive", placed("x.zip", unpack_here), archive()),
        *(Target(kind, lambda file: load_image(file, 8, 10**6), picture(kind)) for kind in ("JPEG", "PNG", "GIF")),
        Target(
            "download",
            placed("x.zip.part.json", lambda file: download_of("x.zip")._known()),
            json.dumps(note).encode(),
            note,
        ),
    ]
    return {target.name: target for target in found}


@pytest.mark.parametrize(("name", "content"), FOUND)
def test_inputs_that_once_failed(name: str, content: bytes, run: Path, manifest_file: Path, setup: Setup) -> None:
    check(make_target(name, run, manifest_file, setup), content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_any_content(name: str, run: Path, manifest_file: Path, setup: Setup) -> None:
    target, end, number = make_target(name, run, manifest_file, setup), time.monotonic() + SECONDS / len(NAMES), 0

    @settings(
        max_examples=ROUND,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs())
    def run_round(content: bytes) -> None:
        if time.monotonic() < end:
            check(target, content)

    while time.monotonic() < end:
        seed(number)(run_round)()
        number += 1
    assert number
