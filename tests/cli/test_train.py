"""What `inat-ft train` prints: settings, stages, results of one and of several runs, and advice."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from inat_ft.cli import render
from inat_ft.cli.train import _advise, _show_run
from inat_ft.records import Advice, Epoch, RunRecord
from inat_ft.registry import STRATEGIES, Plugin, plugins

SMALL = ("--backbone", "cnn", "--set", "model.filters=16", "--image-size", 32, "--precision", "fp32", "--epochs", 1)


def test_all_keys_are_listed_with_their_values(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = cli("train", "--lr", 0.25, "--mode", "partial", "--show-config")
    assert ran.code == 0 and not Path("runs").exists()
    rows = {words[0]: words[1] for words in map(str.split, ran.out.splitlines()) if len(words) > 1}
    assert rows["optim.lr"] == "0.25" and rows["strategy.name"] == "partial" and "strategy.unfreeze_from" in rows


def test_a_dry_run_has_a_table_for_each_part_of_a_schedule(cli, manifest_file: Path) -> None:
    arguments = ("train", "--split", manifest_file, *SMALL, "--mode", "lp-ft", "--epochs", 4, "--dry-run")
    ran = cli(*arguments)
    assert ran.code == 0 and not Path("runs").exists(), ran.err
    assert "optim:\n" in ran.out and "name: lp-ft" in ran.out
    titles = [line for line in ran.out.splitlines() if line.startswith("cnn, lp-ft, epochs ")]
    assert len(titles) == 2 and "frozen" in ran.out
    first, second = ran.out.split(titles[0])[1].split(titles[1])
    assert "frozen" in first and "frozen" not in second


def test_several_seeds_are_listed_with_mean_and_deviation(cli, manifest_file: Path) -> None:
    ran = cli("train", "--split", manifest_file, *SMALL, "--mode", "head", "--seeds", 2, "--seed", 3)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["seed 3", "seed 4"]
    values = [float(line.split("validation accuracy ")[1].split()[0]) for line in lines]
    assert values[2] == pytest.approx(sum(values[:2]) / 2, abs=1e-4) and lines[2].startswith("2 seeds: ")
    assert "±" in lines[2] and "inat-ft compare RUNS --group" in ran.err
    assert len(list(Path("runs").glob("*/record.json"))) == 2
    ran = cli("train", "--resume", next(Path("runs").iterdir()), "--seeds", 2)
    assert ran.code == 2 and "--seeds starts new runs, but --resume continues one" in ran.err


def test_the_newest_of_several_manifests_is_named(cli, images: Path) -> None:
    for number, name in enumerate(("new", "old")):
        assert cli("split", images, "--out", f"splits/{name}.csv", "--test-fraction", 0.25).code == 0
        os.utime(f"splits/{name}.csv", (2e9 - number, 2e9 - number))
    named = "split: splits/new.csv, the newest in splits/"
    assert named in cli("train", *SMALL).err
    assert cli("train", *SMALL, "--folds", 2, "--name", "cv").err.count(named) == 1
    Path("splits/old.csv").unlink()
    assert "newest" not in cli("train", *SMALL).err


def test_only_the_main_process_of_several_prints_results(cli, monkeypatch: pytest.MonkeyPatch, manifest_file) -> None:
    record = RunRecord(name="r", val_accuracy=0.5)
    made = SimpleNamespace(record=record, val_accuracy=0.5, directory=Path("runs/r"), to_dict=lambda: {"name": "r"})
    monkeypatch.setattr("inat_ft.cli.train._train", lambda *given: made)
    words = ("train", "--split", manifest_file, "--json")
    assert cli(*words).json == {"name": "r"} and cli(*words, "--seeds", 2).json["mean"] == 0.5
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    for more in ((), ("--seeds", 2)):
        ran = cli(*words, *more)
        assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_a_plugin_with_the_name_of_a_built_in_is_named(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = plugins(STRATEGIES)["head"][0]
    other = Plugin(STRATEGIES, "head", "other-package", "elsewhere:Head", ours.entry)
    monkeypatch.setitem(plugins(STRATEGIES), "head", [ours, other])
    ran = cli("train", "--mode", "head", "--show-config", "--json")
    assert ran.code == 0 and ran.json
    assert "warning: strategy 'head' of package 'other-package' is not used" in ran.err
    assert "pip uninstall other-package" in ran.err


def finished(monitor: str = "val_accuracy", **more: object) -> RunRecord:
    history = [Epoch(epoch=n, train_loss=2.0 / n, val_loss=1.0 / n, val_accuracy=n / 10) for n in (1, 2)]
    stop = {"monitor": monitor, "patience": 3}
    known = {"history": history, "best_epoch": 2, "val_accuracy": 0.2, "seconds": {"total": 3.0}}
    return RunRecord.model_validate({"name": "r", "config": {"stop": stop}, **known, **more})


def test_the_result_names_the_metric_that_chose_the_epoch(capsys) -> None:
    _show_run(finished(), Path("runs/r"))
    assert capsys.readouterr().out.startswith("best: epoch 2 of 2, validation accuracy 0.2000 in 3.0 s\n")
    _show_run(finished("val_loss", stopped_early=True), Path("runs/r"))
    shown = capsys.readouterr().out
    assert shown.startswith("best: epoch 2 of 2, stopped early, val_loss 0.5000, validation accuracy 0.2000")
    history = [Epoch(epoch=1, train_loss=1.0, val_accuracy=0.1), Epoch(epoch=2, train_loss=1.0, val_accuracy=0.2)]
    _show_run(finished("val_loss", history=history), Path("runs/r"))
    assert "val_loss not finite, validation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({}, ""),
        ({"advice": [Advice.FEW_STEPS], "optimizer_steps": 1}, "only 1 optimizer step: try the same command with --ep"),
        (
            {"advice": [Advice.LOSS_STILL_FALLING]},
            "the training loss was still falling (2.0000 to 1.0000 in the last epoch): try the same command with "
            "--epochs 30, or with --find-lr\n",
        ),
        ({"advice": [Advice.LOSS_STILL_FALLING], "stopped_early": True}, "--epochs 30 --patience 0, or"),
    ],
)
def test_advice_is_given_for_a_reason(capsys, more: dict[str, object], says: str) -> None:
    _advise(finished(**more))
    shown = capsys.readouterr().err
    assert says in shown and bool(shown) == bool(says)


def test_long_work_without_a_terminal_prints_a_line_now_and_then(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(render.time, "monotonic", lambda: now)
    with render.progress("decoding") as update:
        update(1, 1000)
        now = 110.0
        update(6, 1000)
        update(7, 1000)
        now = 120.0
        update(300, 1000)
        now = 125.0
        update(1000, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 6 of 1,000 images, 0.6/s",
        "decoding: 300 of 1,000 images, 15/s",
        "decoding: 1,000 of 1,000 images, 40/s",
    ]
    render.set_quiet(True)
    try:
        with render.progress("decoding") as update:
            update(1000, 1000)
        render.info("quiet")
    finally:
        render.set_quiet(False)
    assert capsys.readouterr().err == "" and not sys.stderr.isatty()
