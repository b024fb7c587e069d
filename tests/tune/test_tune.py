import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_tune.candidates import LADDER, chosen_strategies, common_settings, head_params, strategy_params
from inat_ft_tune.conclusion import interval, standings, summarize
from inat_ft_tune.measure import extrapolate, measure_costs, sample
from inat_ft_tune.report import _steps, chart, write_report
from inat_ft_tune.session import Session
from inat_ft_tune.splitting import make_split
from inat_ft_tune.stages import confirm
from inat_ft_tune.state import FILE, State, Trial, read_state, write_state
from inat_ft_tune.threads import choose_threads
from inat_ft_tune.trainer import Gate, Paused, limited, train_trial
from inat_ft_tune.tune import Request, open_session, parse_duration, tune_session

import inat_ft
from inat_ft.data.manifest import SUBSETS, Manifest, write_manifest
from inat_ft.evaluation.predictions import write_predictions
from inat_ft.metrics import Predictions
from inat_ft.progress import ignore_log, no_progress
from inat_ft.records import Epoch
from inat_ft.settings import load_config
from tests.conftest import make_images

SMALL = {
    "model.backbone": "cnn",
    "model.filters": 16,
    "data.image_size": 32,
    "optim.batch_size": 8,
    "compute.precision": "fp32",
    "compute.device": "cpu",
}
WORDS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("30 min", 1800), ("1h30m", 5400), ("0.5h", 1800), (60, 60)]
)
def test_budgets_are_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "soon", "-5m", "3m later", 3, "1s", math.inf, math.nan])
def test_other_budgets_are_refused(text: str | float) -> None:
    with pytest.raises(inat_ft.UsageError, match="budget"):
        parse_duration(text)


def test_given_settings_are_not_tried() -> None:
    config = load_config(None, [("optim.lr", 2e-3), ("model.dropout", 0.1)])
    assert head_params(config) == [{"optim.lr": 2e-3, "model.dropout": 0.1}]
    assert strategy_params(config, ["full"]) == {"full-lr0.002": ("full", {"optim.lr": 2e-3})}
    settings = dict(common_settings(load_config(None, [("optim.batch_size", 48), ("optim.epochs", 7)]), "s.csv", 100))
    assert (settings["optim.batch_size"], settings["optim.epochs"], settings["data.split"]) == (48, 7, "s.csv")


def test_few_images_have_small_batches() -> None:
    sizes = [dict(common_settings(load_config(), "s.csv", number))["optim.batch_size"] for number in (1999, 2000)]
    assert sizes == [32, 64]


def test_rates_of_likely_strategies_come_before_unlikely_strategies() -> None:
    names = list(strategy_params(load_config(), chosen_strategies((), ignore_log)))
    first = f"lr{LADDER[0]:g}"
    assert names[:2] == [f"partial-{first}", f"full-{first}"]
    assert names.index("full-lr0.0001") < names.index(f"bn-only-{first}")
    assert "full-lr3e-05" in names and not any(name.startswith("head") for name in names)


def test_sgd_has_higher_rates() -> None:
    assert "full-lr0.01" in strategy_params(load_config(None, [("optim.optimizer", "sgd")]), ["full"])


def test_an_unknown_strategy_is_refused_with_the_nearest() -> None:
    with pytest.raises(inat_ft.UsageError, match="did you mean 'partial'"):
        chosen_strategies(["partail"], ignore_log)


def manifest(train: int, val: int) -> Manifest:
    subsets = np.array([SUBSETS.index("train")] * train + [SUBSETS.index("val")] * val, np.uint8)
    names = [f"{number:03d}" for number in range(train + val)]
    labels = np.arange(train + val) % 2
    return Manifest(Path("m.csv"), Path("/"), ("a", "b"), names, labels, subsets, names, names)


def test_a_sample_has_the_proportion_of_the_subsets() -> None:
    found = sample(manifest(100, 25), 20, 0)
    assert (len(found.rows("train")), len(found.rows("val"))) == (20, 5)
    assert list(found.paths) == sorted(set(found.paths)) and found.hashes == found.paths
    assert found.fingerprint != manifest(100, 25).fingerprint
    assert sample(manifest(100, 25), 20, 1).paths != found.paths
    assert len(sample(manifest(4, 1), 20, 0).paths) == 5


def test_costs_are_extrapolated_linearly() -> None:
    assert extrapolate(1 + 8 * 0.1, 1 + 64 * 0.1, (8, 64, 1000)) == pytest.approx(1 + 1000 * 0.1)
    assert extrapolate(9.0, 1.0, (8, 64, 640)) == pytest.approx(1 + 576 / 128)  # noise
    assert extrapolate(-1.0, -1.0, (8, 64, 640)) == 0


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 24.6), (0.1, 1.0), (0.93, 1.0), (0.0, 9.9), (0.5, 0.5)):
        ticks = _steps(low, high)
        assert len(ticks) <= 7 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    state = tuned({"full": [100], "partial": [100]})
    for each in state.trials:
        each.seconds = 1.0
    drawn = chart(state)
    assert drawn is not None
    labels = [tick["text"] for tick in drawn["ticks_y"]]
    assert labels == ["0.98", "0.985", "0.99", "0.995", "1"]


def test_each_strategy_has_a_color_of_its_own() -> None:
    strategies = ["head", *chosen_strategies((), ignore_log)]
    state = tuned({name: [90] for name in strategies})
    for each in state.trials:
        each.seconds = 1.0
    colors = [entry["color"] for entry in (chart(state) or {})["legend"]]
    assert len(set(colors)) == len(colors) == len({trial.strategy for trial in state.of_stage("halving")})


def epoch(number: int, seconds: float = 0.0) -> Epoch:
    return Epoch(epoch=number, val_accuracy=number / 10, seconds=seconds)


def test_a_gate_pauses_after_its_epochs() -> None:
    later = time.monotonic() + 100
    gate = Gate(2, later, later)
    assert gate.on_epoch(epoch(1)) is False
    gate.on_step(1, 2, None, None)
    assert gate.on_epoch(epoch(2)) is False
    with pytest.raises(Paused):
        gate.on_step(1, 2, None, None)


def test_a_gate_ends_a_run_before_an_epoch_that_would_be_late() -> None:
    later = time.monotonic() + 100
    gate = Gate(9, later, later, finish=True)
    assert gate.on_epoch(epoch(1, 50.0)) is False and not gate.is_late
    assert gate.on_epoch(epoch(2, 150.0)) is True and gate.is_late
    with pytest.raises(Paused):
        Gate(9, later, time.monotonic() - 1).on_step(1, 2, None, None)


def test_a_probe_stops_when_its_first_epoch_would_be_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("inat_ft_tune.trainer.time.monotonic", lambda: now)
    gates = [Gate(1, 200.0, 200.0, is_probe=is_probe) for is_probe in (True, False)]
    for gate in gates:
        gate.on_step(10, 1000, None, None)
    now = 104.0  # ten images in four seconds: 392 seconds for the others
    gates[1].on_step(20, 1000, None, None)
    gates[1].on_step(900, 1000, None, None)
    with pytest.raises(Paused):
        gates[0].on_step(20, 1000, None, None)


def test_a_probe_is_completed_if_there_is_no_time_for_another_epoch() -> None:
    later = time.monotonic() + 100
    assert Gate(3, later, later, is_probe=True).on_epoch(epoch(1, 150.0)) is True
    paused = Gate(1, later, later, is_probe=True)
    assert paused.on_epoch(epoch(1, 150.0)) is False  # it has all its epochs, so that the search can continue it
    with pytest.raises(Paused):
        paused.on_step(1, 2, None, None)


def test_work_that_would_end_late_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen, expected = 100.0, [], []
    monkeypatch.setattr("inat_ft_tune.trainer.time.monotonic", lambda: now)

    def stop(seconds: float) -> BaseException:
        expected.append(seconds)
        return Paused()

    @contextmanager
    def bar(what: str, unit: str = "images", /):
        yield lambda done, total: seen.append((done, total))

    with limited(bar, 200.0, stop)("features") as update:
        update(1, 1000)
        now = 110.0
        update(100, 1000)  # 90 seconds more
        now = 120.0
        with pytest.raises(Paused):
            update(110, 1000)  # 162 seconds more
    assert seen == [(1, 1000), (100, 1000), (110, 1000)] and round(expected[0]) == 182


@given(st.integers(1, 64), st.floats(0.01, 10), st.floats(0.01, 10))
def test_one_thread_is_used_when_it_is_faster(most: int, alone: float, together: float) -> None:
    limits = []

    def measure(threads: int, limit: float) -> float:
        limits.append(limit)
        return alone if threads == 1 else together

    try:
        chosen = choose_threads(most, measure)
        assert chosen == (most if together < alone or most == 1 else 1)
        assert limits == ([] if most == 1 else [math.inf, alone])
        assert most == 1 or torch.get_num_threads() == chosen
    finally:
        torch.set_num_threads(1)


def test_the_threads_are_measured() -> None:
    try:
        assert choose_threads(2) in (1, 2)
    finally:
        torch.set_num_threads(1)


def trial(stage: str, name: str, value: float | None, folder: Path = Path("runs"), **more: object) -> Trial:
    known = {"stage": stage, "name": name, "strategy": name.partition("-")[0], "value": value, "status": "done"}
    defaults = {"params": {"optim.lr": 1e-3}, "seed": 0, "directory": (folder / name).as_posix(), "epochs": 2}
    return Trial.model_validate({**known, **defaults, **more})


def predictions(directory: str, correct: int, number: int = 100) -> None:
    true, wrong = np.zeros(number, np.int64), np.arange(number) >= correct
    predicted, names = wrong.astype(np.int64), [str(place) for place in range(number)]
    probabilities = np.stack([1 - wrong * 0.8 - 0.1, wrong * 0.8 + 0.1], 1)
    file = Path(directory) / "predictions-val.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_predictions(file, Predictions(("a", "b"), names, names, true, predicted, probabilities))


def tuned(values: dict[str, list[int]]) -> State:
    """A finished tuning, given how many of 100 images each leader has right with each new seed."""
    state = State(data="photos", settings=[], strategies=[], seed=0, budget_s=60, images={"val": 100})
    for name, seeds in values.items():
        state.add(trial("halving", name, seeds[0] / 100))
        state.leaders.append(name)
        for number, correct in enumerate(seeds, 1):
            repeat = state.add(trial("confirmation", f"{name}-seed{number}", correct / 100, of=name))
            predictions(repeat.directory, correct)
    state.chosen = next(iter(values))
    state.run = state.trial(f"{state.chosen}-seed1").directory
    return state


def test_a_small_difference_is_called_not_significant() -> None:
    found = standings(state := tuned({"full": [90], "partial": [88]}))
    text = summarize(state, found)
    assert text.startswith("The choice is full, lr 0.001: validation accuracy 0.9000 (95% interval 0.8")
    assert "optimistically biased" in text and "among 2 settings" in text
    assert "its mean with 1 new seed after 2 epochs is 0.9000, not significantly different from" in text
    assert "different from partial, lr 0.001 (0.8800, p = 0.5)" in text
    state.trial("full").epochs = 9  # its run of the search was continued as the final run
    assert "its mean with 1 new seed after 2 epochs is 0.9000" in summarize(state, found)


def test_a_large_difference_is_called_better_and_corrected() -> None:
    found = standings(state := tuned({"full": [90], "partial": [80], "lora": [30]}))
    assert [each.trial.name for each in found] == ["full", "partial", "lora"]
    assert found[1].p == pytest.approx(2 * 2**-10)  # McNemar's exact p is 2 / 2^10; Holm: the largest is not multiplied
    assert "better than partial, lr 0.001" in summarize(state, found)


def test_the_report_has_a_column_of_p_only_if_there_was_a_test(tmp_path: Path) -> None:
    found = standings(state := tuned({"full": [90], "partial": [80]}))
    session = SimpleNamespace(state=state, folder=tmp_path)
    assert "p (Holm)" in write_report(session, found).read_text()
    page = write_report(session, [replace(each, p=None) for each in found]).read_text()
    assert "p (Holm)" not in page and "Holm-corrected" not in page and "0.9000" in page


def test_images_of_one_group_count_together(tmp_path: Path) -> None:
    state = tuned({"full": [90], "partial": [80]})
    before, alone = standings(state)[1].p, interval(state, state.trial("full-seed1"))
    names, groups = [str(place) for place in range(100)], [f"g{place // 10}" for place in range(100)]
    labels, subsets = np.zeros(100, np.int64), np.ones(100, np.uint8)
    file = tmp_path / "grouped.csv"
    made = {"group_by": "list.csv"}
    write_manifest(Manifest(file, tmp_path, ("a", "b"), names, labels, subsets, names, groups, made=made))
    state.split = str(file)
    after, together = standings(state)[1].p, interval(state, state.trial("full-seed1"))
    assert before < 0.01 and after > 0.05  # all images that only one has right are of one group
    assert together.value == alone.value == 0.9 and together.high - together.low > 1.5 * (alone.high - alone.low)
    (Path(state.trial("full-seed1").directory) / "predictions-val.csv").unlink()
    assert interval(state, state.trial("full-seed1")) == alone


def test_several_seeds_use_the_test_with_their_variance() -> None:
    one, several = (standings(tuned({"full": a, "partial": b}))[1].p for a, b in (([90], [80]), ([90, 70], [80, 80])))
    assert one < 0.05 < several


def test_without_repetitions_nothing_is_claimed() -> None:
    state = tuned({"full": [90], "partial": [88]})
    state.trials = [each for each in state.trials if each.stage == "halving"]
    state.run = state.trial("full").directory
    assert "no time to repeat" in summarize(state, standings(state))


def test_a_run_is_compared_with_the_best_head() -> None:
    state = tuned({"full": [90], "partial": [88]})
    predictions(state.add(trial("heads", "head-1", 0.6)).directory, 60)
    text = summarize(state, standings(state))
    assert "this run is better than the best head (lr 0.001: 0.6000, p = 1.9e-09)" in text
    predictions(state.add(trial("final", "tune-x", 0.59, strategy="full")).directory, 59)
    state.chosen, state.run = "head-1", state.trial("head-1").directory
    text = summarize(state, standings(state))
    assert text.startswith("The choice is head") and "new seed" not in text
    assert "not significantly different from the longest run of full, lr 0.001 (0.5900, p = 1)" in text


def test_a_choice_without_a_complete_run_is_named() -> None:
    state = tuned({"full": [90], "partial": [88]})
    state.run = state.trial("partial-seed1").directory
    text = summarize(state, standings(state))
    assert text.startswith("The run is partial") and "no time for a complete run of full, lr 0.001" in text


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    state = tuned({"full": [90], "partial": [88]})
    write_state(state, Path())
    assert read_state(Path()) == state
    (tmp_path / FILE).write_text('{"version": 2}')
    with pytest.raises(inat_ft.UsageError, match="cannot read"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trials": []}, "the trial .+ is missing"),
        ({"chosen": "gone"}, "the trial gone is missing"),
        ({"run": "runs/gone"}, "the trial runs/gone is missing"),
        ({"budget_s": -4}, "budget_s: -4 is not greater than 0"),
        (
            {"trials": [trial("halving", "..", None).model_dump()], "chosen": "", "leaders": [], "run": ""},
            "the trial '..' has the name",
        ),
        (
            {"trials": [trial("final", "me", None).model_dump()], "chosen": "", "leaders": [], "run": ""},
            "the trial 'me' has the name",
        ),
    ],
)
def test_a_damaged_state_is_named(tmp_path: Path, changes: dict[str, object], text: str) -> None:
    written = tuned({"full": [90], "partial": [88]}).model_dump(mode="json")
    (tmp_path / FILE).write_text(json.dumps({**written, **changes}))
    with pytest.raises(inat_ft.UsageError, match=text):
        read_state(tmp_path)


def test_a_foreign_state_deletes_nothing_outside_its_folder(session, tmp_path: Path) -> None:
    tuning, other = session(), tmp_path / "documents"
    other.mkdir()
    tuning.state.trials = [trial("halving", "full-a", None, directory=str(other), status="paused")]
    write_state(tuning.state, tuning.folder)
    again = open_session(Request(None, 60.0, tuning.folder), time.monotonic())
    again.drop(again.state.trial("full-a"))
    assert other.is_dir() and again.state.trials[0].directory == (tuning.folder / "runs" / "full-a").as_posix()


def test_showing_a_finished_search_takes_no_budget(session) -> None:
    tuning = session()
    tuning.state.finished, tuning.state.spent_s = ["final"], 12.5
    again = Session(
        tuning.folder,
        tuning.state,
        tuning.base,
        tuning.cache,
        tuning.runs,
        time.monotonic() - 9,
        ignore_log,
        no_progress,
    )
    again.save()
    assert read_state(tuning.folder).spent_s == 12.5


def test_bad_arguments_are_refused(cli, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("path,label\na.png,a\n")
    for words, text in (
        ((), "nothing to tune"),
        (("missing",), "no such folder or manifest: missing"),
        (("--resume", "tunes/x"), "nothing to resume in tunes/x"),
        (("photos", "--resume", "tunes/x"), "--resume takes the data and the settings from the folder"),
        (("--seed", "3", "--resume", "tunes/x"), "--resume takes the data and the settings from the folder"),
        (("photos", "--budget", "soon"), "cannot read the budget 'soon'"),
        (("photos", "--out", "other.csv"), "--out other.csv is a file"),
        (("photos", "--out", "other.csv/x"), "other.csv is not a folder"),
        (("photos", "--budget", ""), "cannot read the budget ''"),
        (("photos", "--set", "strategy.name=full"), "strategy.name cannot be set here"),
    ):
        ran = cli("tune", *words)
        assert ran.code == 2 and text in ran.err, ran.err
    assert not any(Path("tunes").glob("*"))  # nothing was saved, so no folder is left


@pytest.fixture
def session(manifest_file: Path, tmp_path: Path):
    """A session on small images with a cnn."""

    def make(budget: str = "60s", **more: object) -> Session:
        request = Request(
            manifest_file, parse_duration(budget), tmp_path / "t", ["full"], None, list(SMALL.items()), **more
        )
        session = open_session(request, time.monotonic())
        session.cache = tmp_path / "cache"
        session.folder.mkdir(exist_ok=True)
        session.state.split = str(manifest_file)
        return session

    return make


@pytest.mark.slow
def test_a_paused_trial_continues_where_it_stopped(config, tmp_path: Path) -> None:
    settings = config(name="t", **{"strategy.name": "full", "optim.epochs": 4, "stop.patience": 0})
    found = trial("halving", "t", None, tmp_path / "runs", status="waiting", epochs=0)
    later = time.monotonic() + 1000
    for number, status in ((1, "paused"), (3, "paused"), (4, "done")):
        train_trial(found, settings, tmp_path / "cache", Gate(number, later, later), no_progress)
        assert (found.epochs, len(found.epoch_s), found.status) == (number, number, status)
    whole = trial("halving", "w", None, tmp_path / "runs", status="waiting", epochs=0)
    again = settings.model_copy(update={"name": "w"})
    train_trial(whole, again, tmp_path / "cache", Gate(9, later, later), no_progress)
    assert whole.value == found.value
    histories = [inat_ft.Run.open(each.directory).record.history for each in (found, whole)]
    assert [e.train_loss for e in histories[0]] == [e.train_loss for e in histories[1]]


def test_a_failed_trial_does_not_end_the_search(config, tmp_path: Path) -> None:
    settings = config(name="t", **{"strategy.name": "bn-only", "model.batch_norm": False})
    found = trial("halving", "t", None, tmp_path / "runs", status="waiting", epochs=0)
    later = time.monotonic() + 1000
    train_trial(found, settings, tmp_path / "cache", Gate(1, later, later), no_progress)
    assert found.status == "failed" and "BatchNorm" in found.reason


@pytest.mark.slow
def test_costs_are_measured_for_strategies_that_train_in_turn(manifest_file: Path, tmp_path: Path) -> None:
    common = [*SMALL.items(), ("data.split", str(manifest_file)), ("optim.epochs", 6)]
    configs = {
        name: load_config(None, [*common, ("strategy.name", name)]) for name in ("head", "full", "lp-ft", "lora")
    }
    configs["broken"] = load_config(None, [*common, ("strategy.name", "bn-only"), ("model.batch_norm", False)])
    found = measure_costs(configs, tmp_path / "cache", 30)
    assert set(found.strategies) == {"full", "lp-ft", "lora"} and "BatchNorm" in found.skipped["broken"]
    for cost in (found.head, *found.strategies.values()):
        assert cost.epoch > 0 and cost.start > 0 and cost.once >= 0
    assert found.strategies["lp-ft"].epoch > 2 * found.head.epoch  # its later epochs train all layers
    assert set(measure_costs(configs, tmp_path / "cache", 1e-3).strategies) < {"full", "lp-ft", "lora"}


@pytest.mark.slow
def test_from_a_folder_to_a_model(cli, images: Path) -> None:
    ran = cli("tune", images, "--budget", "30s", "--strategy", "full", "--strategy", "partial", *WORDS, "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert "plan for 30 s" in ran.err and "successive halving" in ran.err
    assert Path("splits/photos.csv").exists() and found["split"] == "splits/photos.csv"
    run = inat_ft.Run.open(found["run"])
    assert run.val_accuracy == found["val_accuracy"] and run.test_accuracy is None and found["test"] is None
    assert not list(Path("splits").glob("*.looks.jsonl")), "the test set is not touched"
    heads = [trial["val_accuracy"] or 0.0 for trial in found["trials"] if trial["stage"] == "heads"]
    assert found["val_accuracy"] >= max(heads) and found["summary"].count(".  ") == 0
    stages = {trial["stage"] for trial in found["trials"]}
    assert {"heads", "halving"} <= stages
    assert not [
        path for path in Path("tunes/photos/runs").glob("*/resume.pt") if not (path.parent / "record.json").exists()
    ]
    report = Path("tunes/photos/report.html").read_text()
    assert "The choice is" in report and "<svg" in report and "inat-ft eval" in report
    before = Path("tunes/photos", FILE).read_bytes()
    again = cli("tune", images, "--strategy", "full", "--strategy", "partial", *WORDS, "--eval")
    assert again.code == 0 and found["summary"] in again.out and "tunes/photos is finished" in again.err
    assert found["report"] == "tunes/photos/report.html"
    assert Path("tunes/photos", FILE).read_bytes() == before, "nothing is trained again"
    assert "test accuracy: " in again.out and inat_ft.Run.open(found["run"]).test_accuracy is not None
    other = cli("tune", images, *WORDS)
    assert other.code == 2 and "contains a search with other data or settings" in other.err


@pytest.mark.slow
def test_a_dry_run_trains_nothing_and_its_time_does_not_count(cli, manifest_file: Path) -> None:
    ran = cli("tune", manifest_file, "--budget", "60s", "--strategy", "full", *WORDS, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["plan"]["halving"]["names"] and not Path("runs").exists()
    assert read_state(Path("tunes/photos")).spent_s == 0 and not read_state(Path("tunes/photos")).trials


@pytest.mark.slow
def test_the_python_function(manifest_file: Path) -> None:
    heard: list[str] = []
    result = inat_ft.tune(manifest_file, "15s", strategies=["full"], settings=SMALL, log=heard.append)
    assert result.run.directory.is_dir() and result.report.is_file() and result.summary in result.details["summary"]
    assert any("plan for 15 s" in line for line in heard)
    assert result.table[0]["val_accuracy"] == max(row["val_accuracy"] or 0 for row in result.table)
    with pytest.raises(inat_ft.ConfigError, match="did you mean 'epochs'"):
        inat_ft.tune(manifest_file, "20s", epoch=3)


@pytest.mark.slow
def test_costs_that_were_far_too_high_are_found_out(session) -> None:
    tuning = session("30s")
    tuning.measure()
    tuning.state.costs = {"full": (0.0, 0.1, 1000.0)}
    result = tune_session(tuning)
    tried = tuning.state.of_stage("halving")
    assert len(tried) > 1 and all(each.value is not None for each in tried[:2])
    assert any(each.strategy == "full" for each in tuning.state.of_stage("final")), result.details


@pytest.mark.slow
def test_without_strategies_the_best_head_is_the_choice(session) -> None:
    tuning = session("20s")
    tuning.measure()
    tuning.state.strategies = []
    result = tune_session(tuning)
    assert result.details["chosen"]["strategy"] == "head" and result.run.record.config["strategy"]["name"] == "head"


@pytest.mark.slow
def test_a_budget_that_is_too_short_is_refused(session) -> None:
    tuning = session()
    tuning.measure()
    tuning.state.head_cost = (500.0, 1.0, 1.0)
    with pytest.raises(inat_ft.UsageError, match=r"a budget of 60.0 s is too short: \S+ s are used") as caught:
        tune_session(tuning)
    assert "--budget" in caught.value.hint


@pytest.mark.slow
def test_features_that_were_measured_too_slow_are_tried(session) -> None:
    tuning = session("30s")
    tuning.measure()
    tuning.started = time.monotonic()  # measuring takes long on a busy machine
    tuning.state.head_cost = (2 * tuning.left, 0.1, 0.1)
    result = tune_session(tuning)
    assert len(tuning.state.of_stage("heads")) > 1 and result.run.val_accuracy > 0


@pytest.mark.slow
def test_costs_that_were_far_too_low_do_not_break_the_budget(session, monkeypatch: pytest.MonkeyPatch) -> None:
    late, on_step = Counter[int](), Gate.on_step

    def count(gate: Gate, *words: Any) -> None:
        late[id(gate)] += time.monotonic() > gate.end
        on_step(gate, *words)

    monkeypatch.setattr(Gate, "on_step", count)
    tuning = session("20s")
    tuning.measure()
    tuning.started = time.monotonic()  # measuring takes long on a busy machine
    tuning.state.costs = {"full": (0.0, 1e-4, 1e-4)}
    tuning.state.head_cost = (0.0, 1e-4, 1e-4)
    tune_session(tuning)
    assert late and sum(late.values()) <= 1  # the step during which the time ended was the last one


@pytest.mark.slow
def test_repetitions_that_do_not_fit_are_not_made(session) -> None:
    tuning = session()
    tuning.measure()
    state = tuning.state
    state.trials = [
        trial("halving", "full-a", 0.9, epoch_s=[1, 500.0]),
        trial("heads", "head-1", 0.8, epoch_s=[1, 0.1]),
    ]
    state.trials.append(trial("halving", "full-b", 0.8, epoch_s=[1, 500.0]))
    state.survivors, state.leaders, state.seeds = ["full-a", "full-b"], ["full-a", "full-b"], 1
    confirm(tuning)
    assert not any(each.status == "done" for each in state.of_stage("confirmation")) and state.chosen == "full-a"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_search_continues(stop: signal.Signals, tmp_path: Path) -> None:
    photos = make_images(tmp_path / "photos", each=40)
    words = ["tune", str(photos), "--budget", "30s", "--strategy", "full", *WORDS, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "inat_ft", *words],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    state = Path("tunes/photos") / FILE
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < 240:
        if state.exists() and any(each["stage"] == "halving" for each in json.loads(state.read_text())["trials"]):
            break
        time.sleep(0.05)
    process.send_signal(stop)
    out, err = process.communicate(timeout=900)
    assert process.returncode == (-9 if stop is signal.SIGKILL else 128 + stop), err
    if stop is not signal.SIGKILL:
        assert "to continue: inat-ft tune --resume tunes/photos" in err and not out and "Traceback" not in err
    before = read_state(state.parent)
    assert before.spent_s > 0 and "final" not in before.finished
    ran = subprocess.run(
        [sys.executable, "-m", "inat_ft", "tune", "--resume", "tunes/photos", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["spent_s"] > before.spent_s and Path(found["run"], "record.json").exists()
    after = read_state(state.parent)
    known = {each.name: each for each in after.trials}
    for each in before.of_stage("heads"):
        assert known[each.name].value == each.value  # not trained again


def test_an_existing_split_of_the_folder_is_used(images: Path, tmp_path: Path) -> None:
    inat_ft.split(images, "splits/photos.csv", val_fraction=0.4, near=False)
    before = Path("splits/photos.csv").read_bytes()
    tuning = open_session(Request(images, 60.0, tmp_path / "t", ["full"]), time.monotonic())
    make_split(tuning)
    assert tuning.state.split == "splits/photos.csv" and Path("splits/photos.csv").read_bytes() == before
    other = open_session(Request(make_images(tmp_path / "x" / "photos"), 60.0, tmp_path / "u"), time.monotonic())
    with pytest.raises(inat_ft.UsageError, match="already contains a different split") as caught:
        make_split(other)
    assert caught.value.hint.startswith("split into another file, and tune that one: inat-ft split ")


def test_the_name_of_the_final_run_is_valid_whatever_that_of_the_folder(session, tmp_path: Path) -> None:
    tuning = session()
    for folder, name in (("my photos", "tune-my-photos"), ("Vögel (2024)", "tune-V-gel-2024"), ("写真", "tune-")):
        tuning.folder = tmp_path / folder
        assert tuning.free_name() == name
        assert tuning.config(name, []).name == name
    (tuning.runs / "tune-").mkdir(parents=True)
    assert tuning.free_name() == "tune--2"
    tuning.folder = tmp_path / ("x" * 200)
    assert len(tuning.config(tuning.free_name(), []).name or "") == 85


def test_a_file_that_is_not_a_manifest_is_refused_where_the_manifest_would_be(cli) -> None:
    Path("splits").mkdir()
    Path("splits/photos.csv").write_text("path,label\na.jpg,a\n")
    ran = cli("tune", "splits/photos.csv", "--budget", "60s", *WORDS)
    assert ran.code == 2 and "splits/photos.csv is not a manifest of inat-ft" in ran.err
    assert Path("splits/photos.csv").read_text() == "path,label\na.jpg,a\n"


def test_an_evaluation_without_test_images_is_refused_before_the_search(images: Path, cli) -> None:
    inat_ft.split(images, "splits/none.csv", test_fraction=0, near=False)
    ran = cli("tune", "splits/none.csv", "--budget", "60s", *WORDS, "--eval")
    assert ran.code == 2 and "splits/none.csv has no test images for --eval" in ran.err
    assert not Path("runs").exists()


def test_a_search_keeps_its_folder_of_runs_and_its_budget(manifest_file: Path, tmp_path: Path) -> None:
    def opened(**more: Any) -> Session:
        return open_session(Request(manifest_file, out=tmp_path / "t", **more), time.monotonic())

    first = opened(budget_s=7200.0)
    first.folder.mkdir()
    first.save()
    with pytest.raises(inat_ft.UsageError, match="contains a search with other data or settings"):
        opened(runs=Path("other"))
    assert opened().state.budget_s == 7200
    first.state.data = str(tmp_path / "gone.csv")
    first.save()
    with pytest.raises(inat_ft.UsageError, match="no such folder or manifest"):
        inat_ft.tune(out=first.folder)
    assert read_state(first.folder).budget_s == 7200
    assert opened_again(first.folder, 9000.0).state.budget_s == 9000
    first.state.finished = ["final"]
    first.save()
    assert opened_again(first.folder, 90.0).state.budget_s == 7200  # that of the result


def test_an_error_says_how_the_search_continues(session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tuning: Session) -> None:
        error = inat_ft.StorageError("cannot write: No space left on device")
        error.add_note("resume: inat-ft train --resume t/runs/head-1")
        raise error

    tuning = session()
    tuning.state.finished = ["heads", "halving", "confirmation"]
    monkeypatch.setattr("inat_ft_tune.stages.STAGES", {"final": full})
    with pytest.raises(inat_ft.StorageError) as stopped:
        tune_session(tuning)
    assert stopped.value.__notes__ == [f"to continue: inat-ft tune --resume {tuning.folder}"]


def opened_again(folder: Path, budget: float) -> Session:
    return open_session(Request(None, budget, folder), time.monotonic())
