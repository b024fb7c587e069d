"""Which trial to take, and the page that shows it."""

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from inat_ft_sweep_best.command import show_selection
from inat_ft_sweep_best.replication import replicate, replication
from inat_ft_sweep_report.report import write_report
from inat_ft_sweep_report.statistics import columns, correlations, importances
from inat_ft_sweeps.attempts import Trial, TrialState
from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.folder import create, open_sweep
from inat_ft_sweeps.objective import metric_of
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.selection import Standing, choose, holm_against_first
from inat_ft_sweeps.worker import run_worker

from inat_ft.errors import RecordError
from inat_ft.evaluation.predictions import from_probabilities, read_predictions, write_predictions
from inat_ft.metrics import Contributions
from inat_ft.records import Epoch, RunRecord, SplitInfo, write_record

NUM_IMAGES = 400
EVIL = "<script>alert(1)</script> $x_1$ & 'q'"


def leave_run(job: TrialJob, right: int, seconds: float, with_predictions: bool = True) -> float:
    """A run directory as training leaves it, right on the first `right` of 400 images."""
    folder = job.runs / job.name
    true = np.arange(NUM_IMAGES) % 2
    predicted = np.where(np.arange(NUM_IMAGES) < right, true, 1 - true)
    names = [f"{place}.png" for place in range(NUM_IMAGES)]
    if with_predictions:
        write_predictions(
            folder / "predictions-val.csv", from_probabilities(("a", "b"), names, names, true, np.eye(2)[predicted])
        )
    accuracy = right / NUM_IMAGES
    history = [Epoch(epoch=n, val_accuracy=accuracy, val_loss=1.0, seconds=seconds) for n in (1, 2)]
    split = SplitInfo(manifest="m", fingerprint="f", counts={"val": NUM_IMAGES})
    record = RunRecord(
        name=job.name, val_accuracy=accuracy, history=history, best_epoch=1, split=split, seconds={"total": 2 * seconds}
    )
    write_record(record, folder / "record.json")
    return accuracy


def sweep_of(folder: Path, runs: list[tuple[int, float]], **how):
    spec = parse_spec(
        {
            "method": "grid",
            "name": EVIL,
            "metric": {"name": "val_accuracy", "goal": "maximize"},
            "parameters": {"dropout": {"values": [0.0, 0.1, 0.2][: len(runs)]}, "augment": {"value": "none"}},
        }
    )
    sweep = create(spec, folder, "tied")
    outcomes = iter(runs)
    run_worker(sweep, lambda job: leave_run(job, *next(outcomes), **how), log=lambda line: None)
    return sweep


def test_trials_within_noise_are_tied_and_the_cheapest_of_them_is_named(tmp_path: Path) -> None:
    selection = choose(sweep_of(tmp_path, [(300, 5.0), (302, 9.0), (250, 1.0)]))

    assert [candidate.trial.number for candidate in selection.candidates] == [1, 0, 2]
    assert [candidate.not_significantly_worse for candidate in selection.candidates] == [True, True, False]
    # 2 images are right in one only, all for the same side: p = 2 * 0.5**2; 52 of them: p = 2 * 0.5**52
    assert [candidate.p for candidate in selection.candidates] == [None, pytest.approx(0.5), pytest.approx(4 * 0.5**52)]
    assert (selection.cheapest.trial.number, selection.cheapest.cost) == (0, 10.0)
    assert "McNemar" in selection.test


def test_without_predictions_the_test_is_unpaired_and_weaker(tmp_path: Path) -> None:
    selection = choose(sweep_of(tmp_path, [(300, 5.0), (302, 9.0), (250, 1.0)], with_predictions=False))

    assert "unpaired" in selection.test
    assert [candidate.not_significantly_worse for candidate in selection.candidates] == [True, True, False]


def test_the_level_of_the_unpaired_test_depends_on_the_number_of_pairs(tmp_path: Path) -> None:
    runs = [(302, 9.0), (273, 5.0), (240, 1.0)]
    alone, among = (choose(sweep_of(tmp_path / str(n), runs[:n], with_predictions=False)) for n in (2, 3))
    assert [candidate.standing for candidate in alone.candidates] == [Standing.BEST, Standing.WORSE]
    assert [candidate.standing for candidate in among.candidates] == [Standing.BEST, Standing.TIED, Standing.WORSE]


@pytest.mark.parametrize("other", ["images", "labels"])
def test_predictions_of_other_images_are_not_paired(tmp_path: Path, other: str) -> None:
    sweep = sweep_of(tmp_path, [(300, 5.0), (302, 9.0)])
    file = sweep.runs / "tied-00" / "predictions-val.csv"
    found = read_predictions(file)
    hashes = [f"other-{each}" for each in found.hashes] if other == "images" else list(found.hashes)
    true = found.true if other == "images" else 1 - found.true
    probabilities = np.eye(2)[found.predicted]
    write_predictions(file, from_probabilities(("a", "b"), list(found.paths), hashes, true, probabilities))
    assert "unpaired" in choose(sweep).test


def test_without_runs_nothing_is_claimed(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, [(300, 5.0), (302, 9.0)])
    shutil.rmtree(sweep.runs)

    selection = choose(sweep)
    assert [candidate.not_significantly_worse for candidate in selection.candidates] == [True, False]
    assert "not tested" in selection.test and selection.candidates[1].standing is Standing.UNKNOWN


def test_a_sweep_without_a_complete_trial_has_no_best(tmp_path: Path) -> None:
    spec = parse_spec({"method": "grid", "parameters": {"lr": {"values": [0.1, 0.2]}}})
    with pytest.raises(RecordError, match="no trial of sweep empty is complete"):
        choose(create(spec, tmp_path, "empty"))


def test_confirming_picks_by_the_mean_of_new_seeds(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, [(300, 5.0), (302, 9.0), (250, 1.0)])
    luck = {"tied-01": 280, "tied-00": 305}
    jobs: list[str] = []

    def objective(job: TrialJob) -> float:
        jobs.append(job.name)
        return luck[job.name.rsplit("-", 1)[0]] / NUM_IMAGES

    found = replicate(sweep, 2, 2, {1: objective, 2: objective})
    assert [(c.trial.number, c.mean) for c in found] == [(0, 305 / 400), (1, 280 / 400)]
    assert jobs == ["tied-01-seed1", "tied-01-seed2", "tied-00-seed1", "tied-00-seed2"]
    assert found[0].deviation == 0.0

    again = open_sweep("tied", tmp_path)
    assert [c.trial.number for c in replication(again)] == [0, 1]
    again.import_trial(3, {"dropout": 0.3}, 0.99, "tied-03", 1.0)  # nobody has confirmed this one
    assert replication(again) == []


def test_the_metric_is_that_of_the_best_epoch() -> None:
    history = [Epoch(epoch=1, val_loss=0.5, val_accuracy=0.9), Epoch(epoch=2, val_loss=0.4, val_accuracy=0.8)]

    assert metric_of(RunRecord(name="r", history=history, best_epoch=1), "val_loss") == 0.5


def _trials(value) -> list[Trial]:
    points = [{"lr": lr, "batch_size": size, "mode": m} for lr in (1e-3, 1e-4) for size in (32, 64) for m in "abc"]
    return [Trial(n, TrialState.COMPLETE, point, value(point), f"r{n}") for n, point in enumerate(points)]


def test_importance_is_the_share_of_variance_and_knows_chance() -> None:
    trials = _trials(lambda point: 0.8 + (point["lr"] == 1e-3) * 0.3 + (point["mode"] == "a") * 0.1)

    first, second, third = importances(trials)
    # two levels 0.3 apart: variance 0.0225; a third of the rows 0.1 above: variance 0.1**2 * 2 / 9
    assert (first.name, first.share) == ("lr", pytest.approx(0.0225 / (0.0225 + 0.02 / 9)))
    assert (second.name, second.share) == ("mode", pytest.approx(1 - first.share))
    assert (third.name, third.share) == ("batch_size", pytest.approx(0.0))
    assert first.low > first.null_quantile > third.share
    assert first.low <= first.share <= first.high
    assert importances(trials) == importances(trials)


def test_correlations_take_the_logarithm_of_decades_and_levels_of_words() -> None:
    rows = {
        row.name: row for row in correlations(_trials(lambda point: np.log(point["lr"]) + 0.01 * point["batch_size"]))
    }

    assert list(rows) == ["log lr", "batch_size", "mode = a", "mode = b", "mode = c"]
    assert rows["log lr"].r > 0.98
    assert rows["log lr"].low > 0.9
    assert rows["mode = a"].r == pytest.approx(0.0, abs=1e-9)


def test_the_trials_are_grouped_by_value() -> None:
    column = columns(_trials(lambda point: float(point["batch_size"])))[1]

    assert (column.name, column.names) == ("batch_size", ["32", "64"])
    assert [column.y[column.level == place].tolist() for place in (0, 1)] == [[32.0] * 6, [64.0] * 6]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_report_is_one_page_without_network_or_scripts_and_escapes_names(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, [(300, 5.0), (302, 9.0), (250, 1.0)])

    page, *pngs = write_report(sweep, tmp_path / "report")
    text = page.read_text()
    parsed = _Page()
    parsed.feed(text)
    assert parsed.tags.count("img") == 4
    assert "script" not in parsed.tags
    assert "&lt;script&gt;alert(1)" in text
    assert all(source.startswith(("data:", "#")) for source in parsed.sources)
    assert "The best of 3 complete trials is trial 1 with val accuracy 0.7550" in re.sub(r"\s+", " ", text)
    assert '<th scope="row">dropout</th><td>0.1</td><td class="n">1</td><td class="n">0.7550</td>' in text
    assert "The trials took 30.0 s in total, 10.0 s each (median)" in text and "share their time" not in text
    assert "wide full" not in text  # a figure of one parameter is not magnified to the width of the page
    assert [png.name for png in pngs] == ["trials.png", "parallel.png", "importance.png", "values.png"]
    assert all(png.read_bytes().startswith(b"\x89PNG") for png in pngs)


def test_a_report_of_a_single_trial_and_of_words_in_the_space(tmp_path: Path) -> None:
    one = sweep_of(tmp_path / "one", [(300, 5.0)])
    assert [file.name for file in write_report(one, tmp_path / "a")] == ["report.html", "trials.png"]
    text = (tmp_path / "a" / "report.html").read_text()
    assert "Trial 0 is the only complete trial, with val accuracy 0.7500" in text
    assert "better" not in text and "McNemar" not in text

    words = {"mode": {"values": ["head", "partial", "full"]}, "lr": {"min": 0.001, "max": 0.1}}
    spec = parse_spec({"method": "random", "run_cap": 6, "parameters": words})
    sweep = create(spec, tmp_path, "words")
    run_worker(
        sweep, lambda job: leave_run(job, int(1000 * dict(job.overrides)["optim.lr"]), 1.0), log=lambda line: None
    )
    assert len(write_report(sweep, tmp_path / "b")) == 5


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_a_browser_shows_the_report_without_an_error(tmp_path: Path) -> None:
    page = write_report(sweep_of(tmp_path, [(300, 5.0), (302, 9.0), (250, 1.0)]), tmp_path / "report")[0]
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    ]
    command = ["chromium", *options, f"--user-data-dir={tmp_path}/browser", "--enable-logging=stderr", "--dump-dom"]
    shown = subprocess.run(
        [*command, page.as_uri()],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "HOME": str(tmp_path)},
    )

    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<img") == 4


def test_a_parameter_is_weighed_over_the_trials_that_have_it() -> None:
    points = [{"mode": "head"}] * 4 + [{"mode": "lora", "strategy.rank": rank} for rank in (4, 16, 4, 16, 4, 16)]
    values = [0.1, 0.2, 0.1, 0.2, 0.5, 0.9, 0.5, 0.9, 0.5, 0.9]
    trials = [
        Trial(place, TrialState.COMPLETE, point, value, "run")
        for place, (point, value) in enumerate(zip(points, values, strict=True))
    ]

    column = columns(trials)[1]
    assert (column.name, column.names, column.level.tolist()) == ("strategy.rank", ["4", "16"], [0, 1] * 3)
    assert column.y.tolist() == values[4:]
    rank = next(weight for weight in importances(trials) if weight.name == "strategy.rank")
    assert rank.share == pytest.approx(1.0)
    assert [weight.name for weight in importances(trials[:8])] == ["mode"]  # two values each say nothing


@pytest.mark.slow
def test_among_equally_good_trials_few_sweeps_call_one_worse() -> None:
    """The best is chosen on the images that test it: corrected for the pairs with the best alone, 23 % of sweeps would."""
    rng, trials, images, sweeps = np.random.default_rng(0), 22, 1000, 30
    wrong = 0
    for _ in range(sweeps):
        shared = rng.random(images)
        luck = np.where(rng.random((trials, images)) < 0.7, shared, rng.random((trials, images)))
        right = (luck < 0.8).astype(float)
        order = np.argsort(-right.mean(1), kind="stable")
        wrong += min(holm_against_first([Contributions(row, 0.0, 1.0) for row in right[order]])) < 0.05
    assert wrong / sweeps <= 0.1


def test_the_best_of_many_is_said_to_be_optimistically_biased(tmp_path: Path, capsys) -> None:
    sweep = sweep_of(tmp_path / "many", [(300, 5.0), (302, 9.0), (250, 1.0)])
    show_selection(sweep, choose(sweep), 5)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "the validation result of the best of 3 trials is optimistically biased" in shown
    assert "not significantly different from the best: 1 of 2 other trials: 0" in shown

    shutil.rmtree(sweep.runs)
    show_selection(sweep, choose(sweep), 5)
    shown = " ".join("".join(capsys.readouterr()).split())
    assert "not tested" in shown and "worse" not in shown and "significantly" not in shown

    single = sweep_of(tmp_path / "single", [(300, 5.0)])
    assert choose(single).bias == ""


def test_the_loss_of_trials_is_tested_for_all_pairs(tmp_path: Path) -> None:
    spec = parse_spec(
        {
            "method": "grid",
            "metric": {"name": "val_loss", "goal": "minimize"},
            "parameters": {"dropout": {"values": [0.0, 0.1, 0.2]}},
        }
    )
    sweep, outcomes = create(spec, tmp_path, "loss"), iter([300, 302, 200])

    def objective(job: TrialJob) -> float:
        right = next(outcomes)
        leave_run(job, right, 1.0)
        return 1 - right / NUM_IMAGES

    run_worker(sweep, objective, log=lambda line: None)
    selection = choose(sweep)
    assert [candidate.standing for candidate in selection.candidates] == [Standing.BEST, Standing.TIED, Standing.WORSE]
    assert selection.candidates[2].p < 0.05 < selection.candidates[1].p
