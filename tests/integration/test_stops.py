"""Commands that are stopped at random instants leave valid files, and give the same results when they are run again."""

import json
import multiprocessing
import os
import random
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from zipfile import ZipFile

import pytest
from inat_ft_folds.result import read_summary
from safetensors.torch import load_file

from inat_ft.data.manifest import read_manifest
from inat_ft.evaluation.predictions import read_csv, read_predictions
from inat_ft.paths import FOLDS_SUMMARY
from inat_ft.records import read_record
from inat_ft.settings import load_config
from tests.conftest import make_images
from tests.integration import steps

pytestmark = pytest.mark.slow

NUM_DIGITS = 1797
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.steps"])
    return context


@contextmanager
def running(server: ForkServerContext, commands: Sequence[str]) -> Iterator[BaseProcess]:
    """A process of these commands in the working folder."""
    reader, writer = server.Pipe(duplex=False)
    process = server.Process(target=steps.run_commands, args=(os.getcwd(), commands, writer))
    process.start()
    reader.recv()
    try:
        yield process
    finally:
        process.kill()
        process.join()


FILES = (
    *("splits/photos.csv", "runs/r/*.safetensors", "runs/r/predictions-*.csv", "runs/r/r-fold-*/*.safetensors"),
    *("predictions.csv", "insights/*/*.csv", "exported/*", "data/**/*"),
)


def results() -> dict[str, object]:
    """Everything that the commands must reproduce."""
    run, found = Path("runs/r"), dict[str, object]()
    for pattern in FILES:
        for file in (path for path in sorted(Path().glob(pattern)) if path.is_file()):
            found[file.as_posix()] = file.read_bytes()
    if (run / FOLDS_SUMMARY).exists():
        summary, _ = read_summary(run)
        found["metrics"] = [summary.complete, summary.metrics, [entry.best_epoch for entry in summary.runs]]
    if (run / "record.json").exists():
        record, _ = read_record(run)
        found["history"] = [epoch.model_dump(exclude={"seconds"}) for epoch in record.history]
        found["metrics"] = [record.best_epoch, record.optimizer_steps, record.val_accuracy, record.test_accuracy]
        lines = (run / "metrics.jsonl").read_text().splitlines()
        assert lines == [epoch.model_dump_json() for epoch in record.history]
    return found


def check_files() -> None:
    """Every file that exists under its own name is complete."""
    run = Path("runs/r")
    if Path("splits/photos.csv").exists():
        read_manifest(Path("splits/photos.csv"))
    if (run / "config.yaml").exists():
        load_config(run / "config.yaml")
    if (run / "record.json").exists():
        read_record(run)
    if (run / "model.safetensors").exists():
        load_file(run / "model.safetensors")
    for predictions in run.rglob("predictions-*.csv"):
        read_predictions(predictions)
    if (run / FOLDS_SUMMARY).exists():
        read_summary(run)
    for pattern in ("predictions.csv", "insights/*/*.csv"):
        [read_csv(file) for file in Path().glob(pattern)]
    assert not Path("exported").exists() or Path("exported/README.md").exists()
    assert not Path("data/digits").exists() or len(list(Path("data/digits").rglob("*.png"))) == NUM_DIGITS
    for lines in (*run.glob("metrics.jsonl"), *Path("splits").glob("*.jsonl")):
        [json.loads(line) for line in lines.read_text().splitlines()]
    checkpoints = list(run.glob("*.pt"))
    assert len(checkpoints) <= 2 and all(ZipFile(file).testzip() is None for file in checkpoints)


@pytest.mark.parametrize(
    ("start", "commands", "stops"),
    [
        ((), ("split", "cnn"), 11),
        ((), ("split", "frozen"), 11),
        (("split", "cnn"), ("eval", "export"), 8),
        (("split",), ("folds",), 8),
        (("split", "cnn"), ("predict", "export-folder", "fetch", "curve", "audit"), 8),
        (("split", "cnn"), ("clear", "delete"), 4),
    ],
    ids=["cnn", "frozen", "eval", "folds", "tools", "removal"],
)
def test_stopped_at_any_instant(
    server, tmp_path_factory, start: Sequence[str], commands: Sequence[str], stops: int
) -> None:
    seed = int(os.environ.get("INAT_FT_TEST_SEED") or secrets.randbelow(10**6))
    rng = random.Random(seed)
    make_images(Path("photos"))
    with running(server, start) as process:
        process.join()
    before = tmp_path_factory.mktemp("before") / "start"
    shutil.copytree(Path.cwd(), before)
    began = time.monotonic()
    with running(server, commands) as process:
        process.join()
    whole, seconds = results(), time.monotonic() - began
    assert process.exitcode == 0 and whole, Path("log.txt").read_text()
    stopped = 0
    _restart(before)
    while stopped <= stops:  # the last time to the end
        with running(server, commands) as process:
            number = rng.choice(SIGNALS)
            process.join(rng.uniform(0, seconds) if stopped < stops else None)
            if is_stopped := process.exitcode is None:
                os.kill(process.pid, number)
            process.join()
            stopped += is_stopped or stopped == stops
        about = f"seed {seed}, stop {stopped}, {number.name}: exit code {process.exitcode}\n{_log()}"
        expected = {0, -9 if number == signal.SIGKILL else 128 + number}  # 0: it ended just before the signal
        assert process.exitcode in (expected if is_stopped else {0}), about
        assert "Traceback" not in _log() and "bug in inat-ft" not in _log(), about
        check_files()
        if process.exitcode == 0:
            assert results() == whole, about
            assert not [*Path("runs").rglob(".*.tmp"), *Path("runs").glob(".deleted-*")], about
            _restart(before)


def _log() -> str:
    return Path("log.txt").read_text(encoding="utf-8")[-3000:]


def _restart(before: Path) -> None:
    """Undo the commands."""
    for name in ("runs", "splits", "cache", "insights", "exported", "data", "predictions.csv", "log.txt"):
        shutil.rmtree(name, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
    shutil.copytree(before, Path.cwd(), dirs_exist_ok=True)
