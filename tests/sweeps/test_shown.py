"""What `inat-ft sweep` prints about sweeps in every state."""

from pathlib import Path

import pytest
from inat_ft_sweeps import command
from inat_ft_sweeps.attempts import Cause
from inat_ft_sweeps.base import SweepState, SweepStatus
from inat_ft_sweeps.folder import create, open_sweep
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.render import created_json, folder_options, show_created
from inat_ft_sweeps.study import Claimed

from inat_ft.errors import InatFtError
from tests.sweeps.finished import run, sweep_over, write_run


def test_the_status_of_a_running_sweep_has_its_trials_and_the_time_left(cli) -> None:
    sweep = sweep_over([0.0, 0.1, 0.2, 0.3])
    assert "no trial yet, of 4" in cli("sweep", "status").out
    run(sweep, lambda job, dropout: 0.5 + dropout, 2)
    assert "2 complete, of 4; about 0 s left" in cli("sweep", "status").out
    claimed = sweep.claim()
    assert isinstance(claimed, Claimed)
    shown = cli("sweep", "status").out
    assert shown.splitlines()[0].rstrip() == "sweep s: running"
    assert "2 complete, 1 running, of 4" in shown and "0.6000 best" in shown
    assert "best so far: trial 1, inat-ft train --set model.dropout=0.1" in shown
    sweep.fail(claimed, Cause.CANCELED)
    shown = cli("sweep", "status").out
    assert "its worker was stopped" in shown and "2 complete, 1 interrupted, of 4" in shown


def test_a_trial_that_failed_twice_is_named_with_its_reason(cli) -> None:
    sweep = sweep_over([0.0, 0.1])

    def objective(job, dropout: float) -> float:
        if dropout:
            raise InatFtError("the loss is nan")
        return 0.5

    run(sweep, objective)
    shown = cli("sweep", "status").out
    assert "failed, 2 attempts" in shown and "the loss is nan" in shown and "about" not in shown
    sweep.note("split", "s.csv")
    ended = cli("sweep", "run")
    assert ended.code == 0 and ended.out.startswith("finished: all 2 points have been tried\nbest: trial 0")
    assert "failed after 2 attempts: trial 1, dropout=0.1: the loss is nan" in ended.err


def test_a_sweep_without_an_end_shows_no_time_left(cli) -> None:
    sweep = create(
        parse_spec({"method": "random", "parameters": {"dropout": {"min": 0.0, "max": 0.5}}}), Path("sweeps"), "s"
    )
    run(sweep, lambda job, dropout: 0.5, 3)
    assert "\n3 complete\n" in cli("sweep", "status").out
    assert cli("sweep", "list", "--json").json[0]["trials"] == "3"


def test_watching_ends_with_the_sweep_or_with_ctrl_c(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, waits = sweep_over([0.0, 0.1]), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        run(sweep, lambda job, dropout: 0.5, 1)

    monkeypatch.setattr(command.time, "sleep", wait)
    watched = cli("sweep", "status", "--watch")
    assert watched.code == 0 and len(waits) == 2
    assert [line.rstrip() for line in watched.out.splitlines() if line.startswith("sweep s: ")] == [
        "sweep s: waiting",
        "sweep s: waiting",
        "sweep s: finished, all 2 points have been tried",
    ]

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    sweep_over([0.0], "other")
    monkeypatch.setattr(command.time, "sleep", interrupt)
    assert cli("sweep", "status", "other", "--watch").code == 0


def test_a_created_sweep_names_its_place_and_what_was_skipped(capsys) -> None:
    skipped = {"mine": "it has no `search_space`"}
    at_wandb = create(
        parse_spec({"method": "random", "parameters": {"lr": {"min": 0.1, "max": 1.0}}, "run_cap": 5}),
        Path("sweeps"), "abc", backend="wandb", address="me/birds/abc",
    )  # fmt: skip
    show_created(at_wandb, skipped)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["W&B:  me/birds/abc", "id:   abc", "next: inat-ft sweep run abc"]
    assert "random, maximize val_accuracy: 5 trials" in shown.err
    assert "skipped: mine: it has no `search_space`" in shown.err
    assert "the sweep is at me/birds/abc (backend wandb)" in shown.err
    about = created_json(at_wandb, skipped)
    assert (about["wandb"], about["points"], about["trials"], about["left_out"]) == ("me/birds/abc", None, 5, skipped)
    show_created(sweep_over([0.0, 0.1], "grid"), {})
    shown = capsys.readouterr()
    assert "2 trials of 2 points" in shown.err and "would try every point" not in shown.err
    other = create(at_wandb.spec, Path("sweeps"), "p", backend="plugin")
    show_created(other, {})
    assert "the sweep is on this machine (backend plugin)\n" in capsys.readouterr().err


def test_a_wandb_sweep_is_named_by_entity_project_and_id(cli) -> None:
    for words in (("run", "them/abc"), ("status", "them/theirs/abc")):
        ran = cli("sweep", *words)
        assert ran.code == 2 and "the name of a W&B sweep is ENTITY/PROJECT/ID" in ran.err
    assert not Path("sweeps").exists()
    from inat_ft_sweeps.render import open_sweep as adopt

    adopted = adopt("them/theirs/abc", Path("sweeps"), None, adopt=True)
    assert (adopted.backend_name, adopted.address, adopted.id) == ("wandb", "them/theirs/abc", "abc")
    assert cli("sweep", "status", "them/theirs/abc").out.startswith("sweep abc: waiting")


def test_the_list_has_sweeps_that_cannot_be_read(cli) -> None:
    run(sweep_over([0.0, 0.1], "good"), lambda job, dropout: 0.5)
    sweep_over([0.0], "empty")
    bad = sweep_over([0.0], "bad")
    journal = bad.folder / "journal.log"
    journal.write_text(journal.read_text() + "[]\n")
    found = {each["id"]: each for each in cli("sweep", "list", "--json").json}
    assert (found["good"]["state"], found["good"]["best"]) == ("finished", "0.5000")
    assert (found["empty"]["state"], found["empty"]["trials"], found["empty"]["best"]) == ("waiting", "0 of 1", "")
    assert "journal.log is damaged" in found["bad"]["state"]
    shown = cli("sweep", "list").out
    assert "2 of 2" in shown and "unknown: " in shown and "local" in shown


def test_printed_commands_repeat_folders_that_the_environment_does_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INAT_FT_CACHE_DIR")
    assert folder_options(None) == []
    assert folder_options(Path("my cache"), Path("mine")) == ["--cache-dir 'my cache'", "--runs-dir mine"]
    monkeypatch.setenv("INAT_FT_CACHE_DIR", "my cache")
    monkeypatch.setenv("INAT_FT_RUNS_DIR", "other")
    assert folder_options(Path("my cache"), Path("mine")) == ["--runs-dir mine"]


def test_best_names_the_equal_ones_and_the_cheapest_of_them(cli) -> None:
    correct, seconds = {0.0: 90, 0.1: 89, 0.2: 40}, {0.0: 9.0, 0.1: 2.0, 0.2: 1.0}
    run(sweep_over(list(correct)), lambda job, dropout: write_run(job, correct[dropout], seconds[dropout]))
    ran = cli("sweep", "best")
    assert "not significantly different from the best: 1 of 2 other trials: 1" in ran.out
    assert "cheapest that is not significantly worse: trial 1, 2.0 s, dropout=0.1" in ran.out
    assert "optimistically biased" in ran.err and "next: inat-ft sweep best s --eval" in ran.err
    rows = [line.split()[:2] for line in cli("sweep", "best", "--top", "2").out.splitlines() if line[:1].isspace()]
    assert [row for row in rows if row and row[0].isdigit()] == [["0", "0.9000"], ["1", "0.8900"]]
    found = cli("sweep", "best", "--json").json
    assert (found["best"]["number"], found["cheapest"]["number"]) == (0, 1)
    assert [trial["number"] for trial in found["tied"]] == [0, 1]


def test_best_without_rivals_says_so(cli) -> None:
    correct = {0.0: 90, 0.1: 40}
    sweep = sweep_over(list(correct))
    run(sweep, lambda job, dropout: write_run(job, correct[dropout]), 1)
    ran = cli("sweep", "best")
    assert "it is the only complete trial" in ran.out and "test: " not in ran.out and "biased" not in ran.err
    run(sweep, lambda job, dropout: write_run(job, correct[dropout]))
    ran = cli("sweep", "best")
    assert "not significantly different from the best: 0 of 1 other trial\n" in ran.out
    assert "cheapest that is not significantly worse: trial 0" in ran.out


def test_best_without_the_runs_is_not_tested(cli) -> None:
    run(sweep_over([0.0, 0.1]), lambda job, dropout: 0.9 - dropout)
    ran = cli("sweep", "best")
    assert "test: not tested" in ran.out and "cheapest" not in ran.out and "not significantly" not in ran.out
    assert cli("sweep", "best", "--json").json["bias"].endswith("optimistically biased")


def test_replications_are_shown_with_their_deviation(cli) -> None:
    sweep = sweep_over([0.0, 0.1])
    run(sweep, lambda job, dropout: write_run(job, 90 - round(100 * dropout)))
    sweep.note("confirmed", {"0": [0.9, 0.7, 0.8], "1": [0.8, 0.77]})
    shown = cli("sweep", "best").out
    assert "0.7500 ± 0.0707" in shown and "0.7000, 0.8000" in shown
    assert "best by the mean of the new seeds: trial 1, dropout=0.1" in shown
    assert "best: inat-ft train --set model.dropout=0.1" in shown
    sweep.note("confirmed", {"1": [0.8, 0.95]})  # the best trial is newer than the replications
    assert "repeated with other seeds" not in cli("sweep", "best").out
    assert open_sweep("s", Path("sweeps")).attr("confirmed") == {"1": [0.8, 0.95]}


@pytest.mark.parametrize(("count", "code", "expected"), [(2, 137, 0), (1, 137, 137), (1, 0, 0)])
def test_a_killed_worker_matters_only_if_the_sweep_has_not_ended(
    cli, monkeypatch: pytest.MonkeyPatch, count: int, code: int, expected: int
) -> None:
    sweep, asked = sweep_over([0.0, 0.1]), []
    sweep.note("split", "s.csv")

    def run_workers(arguments: list[str], number: int, limit: int | None) -> int:
        asked.append((arguments, number, limit))
        run(sweep, lambda job, dropout: 0.5 + dropout, count)
        return code

    monkeypatch.setattr("inat_ft_sweeps.worker.run_workers", run_workers)
    ran = cli("sweep", "run", "--workers", 3, "--cache-dir", "mine")
    assert ran.code == expected
    assert asked == [(["s", "--sweeps-dir", "sweeps", "--cache-dir", "mine"], 3, None)]
    assert ("finished: all 2 points have been tried" in ran.out) == (count == 2)
    assert ("best: trial" in ran.out) == (expected == 0)


def test_an_interrupted_sweep_says_how_to_resume_it_and_a_worker_prints_nothing(cli, monkeypatch) -> None:
    sweep_over([0.0, 0.1]).note("split", "s.csv")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inat_ft_sweeps.worker.run_worker", interrupt)
    ran = cli("sweep", "run", "--cache-dir", "mine")
    assert ran.code == 130 and "interrupted; resume it: inat-ft sweep run s --cache-dir mine" in ran.err
    monkeypatch.setattr("inat_ft_sweeps.worker.run_worker", lambda *given: SweepStatus(SweepState.FINISHED, "done"))
    assert cli("sweep", "run").out.startswith("finished: done")
    monkeypatch.setenv("INAT_FT_SWEEP_PARENT", "1")
    ran = cli("sweep", "run")
    assert (ran.code, ran.out) == (0, "")
