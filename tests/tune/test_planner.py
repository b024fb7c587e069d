from hypothesis import given
from hypothesis import strategies as st
from inat_ft_tune.planner import (
    CONFIRM,
    HALVING,
    MAX_EPOCHS,
    RESERVE,
    Cost,
    Rung,
    fits_too,
    format_seconds,
    halving_seconds,
    later_rungs,
    least,
    make_plan,
    plan_confirmation,
    plan_final,
    plan_halving,
    plan_heads,
)

positive = st.floats(1e-3, 1e4)
costs = st.builds(Cost, once=st.floats(0, 1e4), start=positive, epoch=positive)
several = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), costs, max_size=12)
PARTIAL, FULL, HEAD = Cost(5, 0.5, 2), Cost(0, 0.5, 8), Cost(10, 0.3, 0.05)


@given(costs, several, st.floats(1, 1e6))
def test_a_plan_is_never_over_its_budget(head: Cost, candidates: dict[str, Cost], budget: float) -> None:
    plan = make_plan(head, candidates, budget, {name: name[0] for name in candidates})
    if plan is None:
        assert least(head) > (1 - RESERVE) * budget
        return
    assert plan.seconds <= (1 - RESERVE) * budget * (1 + 1e-9)
    assert plan.heads.runs >= 1 and all(stage.seconds >= 0 for stage in (plan.halving, plan.confirmation, plan.final))
    assert set(plan.halving.names) <= set(candidates)


@given(several, st.floats(1, 1e5))
def test_every_outcome_of_the_search_fits(candidates: dict[str, Cost], seconds: float) -> None:
    owners = {name: name for name in candidates}
    halving, dropped = plan_halving(candidates, seconds, owners)
    assert sorted((*halving.names, *dropped)) == sorted(candidates)
    members = [candidates[name] for name in halving.names]
    for order in (members, members[::-1], sorted(members, key=lambda cost: cost.epoch)):  # whoever stays
        total, before = sum(cost.once for cost in members), 0
        for rung in halving.rungs:
            total += sum(cost.run(rung.epochs - before) for cost in order[: rung.candidates])
            before = rung.epochs
        assert total <= HALVING * seconds * (1 + 1e-9)
    epochs = [rung.epochs for rung in halving.rungs]
    assert epochs == sorted(set(epochs)) and all(number <= MAX_EPOCHS for number in epochs)


@given(st.lists(positive, max_size=6), st.floats(0, 1e5))
def test_repetitions_fit(each: list[float], seconds: float) -> None:
    found = plan_confirmation(each, seconds)
    assert found.seeds * sum(each[: found.leaders]) <= CONFIRM * seconds * (1 + 1e-9)
    assert (found.seeds == 0) == (len(each) < 2 or sum(each[:2]) > CONFIRM * seconds)


@given(costs, st.floats(-10, 1e5))
def test_the_final_run_fits(cost: Cost, seconds: float) -> None:
    final = plan_final(cost, seconds)
    assert final.seconds <= max(0.0, seconds) * (1 + 1e-9) and final.epochs <= MAX_EPOCHS


@given(several, costs, st.integers(1, 5), st.floats(0, 1e5))
def test_one_more_candidate_fits_with_a_second_step(
    tried: dict[str, Cost], cost: Cost, epochs: int, seconds: float
) -> None:
    if fits_too(tried, "new", cost, epochs, seconds):
        more = {**tried, "new": cost}
        second = Rung(max(2, -(-len(more) // 2)), 2 * epochs)
        each = sorted((one.run(epochs) for one in more.values()), reverse=True)
        later = sum(each[: second.candidates]) if len(more) > 1 else 0.0
        assert cost.once + cost.run(epochs) + later <= seconds * (1 + 1e-9)


def test_a_short_budget_has_heads_only() -> None:
    plan = make_plan(HEAD, {"full": FULL}, 16, {"full": "full"})
    assert plan is not None and plan.heads.runs >= 1 and not plan.halving.names
    assert plan.skipped == ("full (8.0 s per epoch)",) and plan.final.epochs > 0


def test_a_budget_below_one_head_has_no_plan() -> None:
    assert make_plan(HEAD, {"full": FULL}, 10, {}) is None


def test_more_time_tries_more_and_repeats_more() -> None:
    names = {f"{name}-{number}": cost for number in range(4) for name, cost in (("partial", PARTIAL), ("full", FULL))}
    owners = {name: name.partition("-")[0] for name in names}
    plans = [make_plan(HEAD, names, budget, owners) for budget in (100, 400, 1600, 6400)]
    tried = [len(plan.halving.names) for plan in plans]
    assert tried == sorted(tried) and tried[0] < tried[-1] == len(names)
    assert [plan.confirmation.seeds for plan in plans] == sorted(plan.confirmation.seeds for plan in plans)
    assert plans[-1].confirmation.leaders == 3 and plans[-1].confirmation.seeds >= 2


def test_candidates_are_taken_in_their_order() -> None:
    names = {f"full-{number}": FULL for number in range(9)}
    halving, _ = plan_halving(names, 150, dict.fromkeys(names, "full"))
    assert halving.names == tuple(names)[: len(halving.names)] and 1 < len(halving.names) < 9


def test_the_cost_of_frozen_layers_counts_once_per_strategy() -> None:
    names = {"a-1": PARTIAL, "a-2": PARTIAL}
    rungs = [Rung(2, 1)]
    assert halving_seconds(names, rungs, {"a-1": "a", "a-2": "a"}) == 5 + 2 * 2.5
    assert halving_seconds(names, rungs, {}) == 10 + 2 * 2.5


def test_later_steps_leave_time_for_a_repetition() -> None:
    names = {str(number): Cost(0, 0, 1) for number in range(8)}
    assert later_rungs(names, 1, 1000, confirm=24) == (Rung(4, 2), Rung(2, 4))
    assert later_rungs(names, 1, 1000, confirm=23) == (Rung(4, 2),)
    assert later_rungs(names, 1, 1000, confirm=3) == ()
    assert later_rungs(names, 1, 5, confirm=1000) == (Rung(4, 2),)


def test_more_heads_with_more_time() -> None:
    assert plan_heads(HEAD, 5) is None
    assert plan_heads(HEAD, 10.5).runs == 1
    assert plan_heads(HEAD, 200).runs == 12


def test_durations_for_people() -> None:
    assert [format_seconds(seconds) for seconds in (4.21, 180, 200, 7500)] == [
        "4.2 s",
        "3 min",
        "3 min 20 s",
        "2 h 5 min",
    ]
