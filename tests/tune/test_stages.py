"""What a search chooses, and what it does with its time, with runs whose seconds and results are known."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from inat_ft_tune.candidates import chosen_strategies
from inat_ft_tune.measure import NO_TIME, Measured
from inat_ft_tune.planner import Cost
from inat_ft_tune.session import Session
from inat_ft_tune.stages import confirm, run_stages, sweep_heads, train_choice
from inat_ft_tune.state import FILE, Trial, read_state, write_state

import inat_ft
from inat_ft.config import RunConfig
from inat_ft.errors import ConfigError, DataError, UsageError
from inat_ft.locks import FileLock
from inat_ft.records import read_record
from inat_ft.registry import STRATEGIES, Plugin, plugins
from tests.tune.world import World

BEST = {"full": 0.9, "partial": 0.8, "lora": 0.6, "head": 0.5}


def by_strategy(config: RunConfig, epoch: int) -> float:
    """An accuracy that increases with each epoch, and is highest at the first learning rate."""
    return BEST[config.strategy.name] + 0.001 * epoch - 0.02 * (config.optim.lr != 1e-3)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(monkeypatch)
    made.accuracy = by_strategy
    return made


def delivered(session: Session) -> Trial:
    return next(trial for trial in session.state.trials if trial.directory == session.state.run)


def test_the_best_strategy_is_repeated_and_trained_to_the_end(world: World) -> None:
    session = world.search(costs={"partial": 1.0, "full": 1.0, "lora": 1.0})
    started = world.now
    run_stages(session)
    state, run = session.state, delivered(session)
    assert state.chosen == "full-lr0.001"
    assert (run.strategy, run.stage, run.directory) == ("full", "final", "runs/tune-t")
    assert read_record(Path(run.directory))[0].val_accuracy == run.value == pytest.approx(0.9 + 0.001 * run.epochs)
    assert run.epochs == max(trial.epochs for trial in state.trials if trial.strategy == "full")
    assert run.seed not in {trial.seed for trial in state.trials if trial is not run}
    assert len(state.leaders) > 1 and all(state.confirmed(name) for name in state.leaders)
    assert world.now - started <= state.budget_s
    left = {path.name for path in Path("t/runs").iterdir()}
    dropped = {trial.name for trial in state.trials if trial.status == "dropped"}
    assert dropped and not dropped & left, "folders of candidates that lost are deleted"
    assert not [trial for trial in state.trials if trial.status in ("paused", "waiting")]


@pytest.mark.parametrize("factor", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("budget", [30.0, 300.0])
def test_the_budget_holds_however_wrong_the_estimates_are(world: World, factor: float, budget: float) -> None:
    session = world.search(budget, costs={"partial": factor, "full": factor})
    started = world.now
    run_stages(session)
    assert world.now - started <= 1.05 * budget
    assert session.state.run and Path(session.state.run, "record.json").is_file()
    assert delivered(session).strategy == "full" or factor * budget != 300.0


def test_a_head_that_is_better_than_all_strategies_is_the_choice(world: World) -> None:
    world.accuracy = lambda config, epoch: 0.97 if config.strategy.name == "head" else by_strategy(config, epoch)
    session = world.search()
    run_stages(session)
    assert session.state.chosen == delivered(session).name and delivered(session).strategy == "head"


def test_without_a_strategy_that_can_be_trained_the_best_head_is_the_choice(world: World) -> None:
    world.errors = {"full": ConfigError("no such stage")}
    session = world.search()
    run_stages(session)
    state = session.state
    assert state.trial(state.chosen).strategy == "head" and state.survivors == []
    tried = state.of_stage("halving")
    assert tried and all((trial.status, trial.reason) == ("failed", "no such stage") for trial in tried)
    assert any("failed: no such stage" in line for line in world.lines)


def test_an_interrupted_search_trains_no_epoch_twice_and_chooses_the_same(world: World) -> None:
    whole = world.search(costs={"partial": 1.0, "full": 1.0})
    run_stages(whole)
    number, expected = len(world.epochs), whole.state.chosen
    for place in range(40, number, number // 6):
        world.epochs.clear()
        world.interrupt_after = place
        session = world.search(costs={"partial": 1.0, "full": 1.0})
        session.folder = Path(f"t{place}")
        with pytest.raises(KeyboardInterrupt):
            run_stages(session)
        world.interrupt_after = None
        halves = world.epochs.copy()
        known = {trial.name: trial.epochs for trial in session.state.trials}
        again = world.session(read_state(session.folder))
        again.folder = session.folder
        run_stages(again)
        assert again.state.chosen == expected and again.state.finished == list(whole.state.finished)
        searched = [each for each in world.epochs if not each[0].startswith("head")]
        assert len(set(searched)) == len(searched), "an epoch of a candidate was trained twice"
        assert len(world.epochs) > len(halves) and all(
            again.state.trial(name).epochs >= epochs for name, epochs in known.items()
        )


def test_more_heads_are_tried_if_the_first_are_fast(world: World) -> None:
    world.seconds = lambda config: 1e-3
    session = world.search(100.0, head=(1.0, 1.0, 5.0))
    sweep_heads(session)
    heads = session.state.of_stage("heads")
    assert len(heads) == 12 and len({tuple(head.params.values()) for head in heads}) == 12
    assert all(head.status == "done" and head.value for head in heads)


def test_features_that_were_measured_too_slow_are_tried_with_one_epoch(world: World) -> None:
    session = world.search(100.0, head=(200.0, 0.1, 0.1))
    sweep_heads(session)
    heads = session.state.of_stage("heads")
    assert heads[0].epochs == 1 and {head.epochs for head in heads[1:]} == {10}


def test_a_head_that_cannot_be_trained_ends_the_search(world: World) -> None:
    world.errors = {"head": ConfigError("dropout: 2 is more than 1")}
    with pytest.raises(UsageError, match="no head could be trained: dropout: 2 is more than 1"):
        sweep_heads(world.search())
    world.errors = {"head": DataError("a.png has changed since the split")}
    with pytest.raises(DataError, match="has changed"):
        sweep_heads(world.search())


def ahead(world: World, budget: float, *names: str, epochs: int = 2) -> Session:
    """A search whose strategies were tried: the candidates are paused after some epochs, and there is a complete head."""
    session = world.search(1e6, optim__lr=1e-3, model__dropout=0.0, costs=dict.fromkeys(names, 1.0))
    session.state.finished = ["heads", "halving"]
    head = session.trial("head-1", "heads", "head", {"optim.lr": 1e-3}, 0)
    head.status, head.value, head.epochs, head.epoch_s = "done", 0.5, 10, [0.1] * 10
    for name in names:
        candidate = session.candidate(f"{name}-lr0.001")
        session.advance(candidate, epochs, float("inf"))
        assert candidate.status == "paused"
        session.state.survivors.append(candidate.name)
    session.state.chosen = session.state.survivors[0]
    session.started, session.state.budget_s = world.now, budget
    return session


def test_a_repetition_that_is_cut_short_does_not_count(world: World) -> None:
    session = ahead(world, 100.0, "full", "partial")
    world.seconds = lambda config: 60.0
    confirm(session)
    state = session.state
    repeated = state.of_stage("confirmation")
    assert {trial.reason for trial in repeated if trial.status == "failed"} == {"there was no time for all epochs"}
    assert not state.confirmed("full-lr0.001") or not state.confirmed("partial-lr0.001")
    assert state.chosen == "full-lr0.001", "without repetitions, the candidate with the best result"


def test_repetitions_decide_between_leaders(world: World) -> None:
    session = ahead(world, 1000.0, "full", "partial")
    world.accuracy = lambda config, epoch: 0.6 if config.strategy.name == "full" else 0.7
    confirm(session)
    assert session.state.chosen == "partial-lr0.001"
    assert sum(line.startswith("new seeds: ") for line in world.lines) == 2
    assert any("partial, lr 0.001: mean 0.7000 (0.7000" in line for line in world.lines)


def test_without_time_for_a_new_run_the_one_of_the_search_is_continued(world: World) -> None:
    session = ahead(world, 1.6, "full", epochs=4)
    train_choice(session)
    run = delivered(session)
    assert (run.name, run.status, run.epochs) == ("full-lr0.001", "done", 5)
    assert run.directory == "t/runs/full-lr0.001" and not Path("runs").exists()


def test_without_time_for_an_epoch_a_complete_run_is_the_choice(world: World) -> None:
    session = ahead(world, 0.5, "full", epochs=4)
    train_choice(session)
    assert delivered(session).name == "head-1"
    assert session.state.trial("full-lr0.001").status == "dropped" and not Path("t/runs/full-lr0.001").exists()


def test_an_interrupted_final_run_is_continued_under_its_name(world: World) -> None:
    session = ahead(world, 100.0, "full")
    world.interrupt_after = len(world.epochs) + 3
    with pytest.raises(KeyboardInterrupt):
        train_choice(session)
    (final,) = session.state.of_stage("final")
    world.interrupt_after = None
    train_choice(session)
    assert [trial.name for trial in session.state.of_stage("final")] == [final.name] == ["tune-t"]
    assert delivered(session) is final and final.epochs > 3
    assert [number for name, number in world.epochs if name == "tune-t"] == list(range(1, final.epochs + 1))


def test_a_final_run_never_takes_the_name_of_another_run(world: World) -> None:
    for taken in ("tune-t", "tune-t-2"):
        Path("runs", taken).mkdir(parents=True)
    session = ahead(world, 100.0, "full")
    train_choice(session)
    assert session.state.run == "runs/tune-t-3"


def test_the_command_continues_a_search_and_shows_its_result(world: World, cli) -> None:
    Path("photos.csv").touch()
    write_state(world.search(60.0).state, Path("t"))
    world.interrupt_after = 30
    stopped = cli("tune", "--resume", "t")
    assert stopped.code == 130 and "stopped; to continue: inat-ft tune --resume t" in stopped.err and not stopped.out
    world.interrupt_after = None
    ran = cli("tune", "--resume", "t")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("The choice is full, lr 0.001: validation accuracy 0.9")
    assert "run:    runs/tune-t" in ran.out and "next: inat-ft eval runs/tune-t" in ran.err
    assert "better than the best head" in Path("t/report.html").read_text()
    before = Path("t", FILE).read_bytes()
    shown = cli("tune", "--resume", "t", "--json").json
    assert shown["chosen"] == {"strategy": "full", "optim.lr": 1e-3} and shown["val_accuracy"] > 0.9
    assert Path("t", FILE).read_bytes() == before, "a finished search is only shown"


def test_a_dry_run_shows_the_plan_and_trains_nothing(world: World, cli) -> None:
    Path("photos.csv").touch()
    write_state(world.search(60.0).state, Path("t"))
    ran = cli("tune", "--resume", "t", "--dry-run")
    assert ran.code == 0 and not ran.out and "plan for 60 s" in ran.err
    assert "successive halving" in ran.err and not world.epochs and not Path("t/runs").exists()
    assert read_state(Path("t")).spent_s == 0.0


def test_the_python_function_continues_a_search(world: World) -> None:
    Path("photos.csv").touch()
    write_state(world.search(60.0).state, Path("t"))
    found = inat_ft.tune(None, None, out="t", log=world.lines.append)
    assert found.summary.startswith("The choice is full") and found.run.directory == Path("runs/tune-t")
    assert any(line.startswith("plan for 60 s") for line in world.lines)
    again = inat_ft.tune(None, "90s", out="t")
    assert again.summary == found.summary and again.details["budget_s"] == 60, "a finished search is only shown"
    assert len(again.table) == len(found.table)


def test_an_interrupted_search_says_how_much_time_is_left(world: World) -> None:
    Path("photos.csv").touch()
    session = world.search(60.0)
    session.state.finished = ["heads"]
    head = session.trial("head-1", "heads", "head", {"optim.lr": 1e-3}, 0)
    head.status, head.value = "done", 0.5
    write_state(session.state, Path("t"))
    inat_ft.tune(None, None, out="t", log=world.lines.append)
    assert "continuing, 57.0 s left: t" in world.lines


def test_a_search_in_use_is_left_alone(world: World, cli) -> None:
    write_state(world.search(60.0).state, Path("t"))
    before = Path("t", FILE).read_bytes()
    with FileLock(Path("t/.lock")):
        ran = cli("tune", "--resume", "t")
    assert ran.code == 2 and "another process is using t" in ran.err and Path("t", FILE).read_bytes() == before


def test_a_budget_into_which_no_head_fits_is_refused_with_the_one_that_is_needed(world: World) -> None:
    with pytest.raises(UsageError, match=r"a budget of 60\.0 s is too short: 0\.0 s are used") as caught:
        world.search(60.0, head=(500.0, 1.0, 1.0)).plan()
    assert "use --budget 9m" in caught.value.hint
    plan = world.search(60.0, head=(100.0, 1.0, 1.0)).plan()  # may be measured too high: it is tried
    assert (plan.heads.runs, plan.heads.epochs, plan.skipped) == (1, 1, ("all strategies",))


def test_strategies_that_were_not_measured_are_tried_last_and_broken_ones_never(
    world: World, cli, manifest_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"full": Cost(0.0, 0.1, 1.0), "partial": Cost(0.0, 0.1, 30.0)}
    skipped = {"lora": NO_TIME, "bn-only": "the network has no BatchNorm"}
    monkeypatch.setattr(
        "inat_ft_tune.session.measure_costs", lambda *given: Measured(Cost(1.0, 0.1, 0.1), costs, skipped)
    )
    names = [word for name in (*costs, *skipped) for word in ("--strategy", name)]
    ran = cli("tune", manifest_file, "--budget", "60s", *names, "--set", "model.backbone=cnn", "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["skipped"] == {"bn-only": "the network has no BatchNorm"}
    assert ran.json["costs"]["lora"] == ran.json["costs"]["partial"] and "bn-only" not in ran.json["costs"]
    assert "skipped: bn-only: the network has no BatchNorm" in ran.err and "measuring a few batches" in ran.err
    assert "only if there is time left: " in ran.err


def test_a_strategy_that_cannot_be_imported_is_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "nowhere:Broken", STRATEGIES)
    monkeypatch.setitem(plugins(STRATEGIES), "broken", [Plugin(STRATEGIES, "broken", "pack", "nowhere:Broken", entry)])
    lines: list[str] = []
    found = chosen_strategies((), lines.append)
    assert "full" in found and "broken" not in found
    assert len(lines) == 1 and lines[0].startswith("warning: strategy 'broken' of package 'pack' cannot be imported")


def test_busy_cores_are_said_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session, chosen = world.search(), iter([1, 4])
    session._most_threads = 4
    threads = [4, 1]
    monkeypatch.setattr("inat_ft_tune.session.choose_threads", lambda most: next(chosen))
    monkeypatch.setattr("inat_ft_tune.session.torch.get_num_threads", lambda: threads.pop(0))
    session.use_fastest_threads()
    session.use_fastest_threads()
    assert world.lines == [
        "1 thread of 4: other programs use the cores",
        "4 threads of 4: the cores are free again",
    ]
