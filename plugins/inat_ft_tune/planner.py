"""What fits into a time budget, from measured costs: a pure function, so that it can be tested without training.

The costs of a stage are those of its most expensive possible outcome: the most expensive candidates stay in the search. So
a plan is never over its budget if the costs are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MAXHEADS, HEAD_EPOCHS, MAX_EPOCHS = 12, 30, 50
RESERVE = 0.05
"""Fraction of the budget that no stage may use: reports, and costs that no measurement contains."""
HALVING, CONFIRM = 0.45, 0.3
"""Fractions of the time left: for the search of all that is left after the heads, for new seeds of what is left then."""
HEADS = 0.25
_MIN_FINAL_EPOCHS = 2
_ENOUGH = 6
_REPEATS = ((3, 3), (3, 2), (2, 3), (2, 2), (3, 1), (2, 1))
"""Numbers of leaders and seeds, the best choice first."""


@dataclass(frozen=True)
class Cost:
    """The cost of runs of one strategy, in seconds.

    once: before the first epoch of the first run, such as the computation of frozen layers. start: of each run.
    """

    once: float
    start: float
    epoch: float

    def run(self, epochs: int, runs: int = 1) -> float:
        """Return the cost of more runs after the first."""
        return runs * (self.start + epochs * self.epoch)


@dataclass(frozen=True)
class Rung:
    """A step of successive halving: this number of candidates is trained until it has this number of epochs."""

    candidates: int
    epochs: int


@dataclass(frozen=True)
class Heads:
    """The head sweep. seconds: expected."""

    runs: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Halving:
    """The search over strategies: the candidates of the first step by name, and all steps."""

    names: tuple[str, ...] = ()
    rungs: tuple[Rung, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Confirmation:
    """The best candidates are trained again with new seeds."""

    leaders: int = 0
    seeds: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Final:
    """The training of the choice; without an epoch, the best run of the earlier stages is the choice."""

    epochs: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What fits into the time, in this order. skipped: what does not, and why."""

    heads: Heads
    halving: Halving
    confirmation: Confirmation
    final: Final
    skipped: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Expected time of all stages."""
        return sum(stage.seconds for stage in (self.heads, self.halving, self.confirmation, self.final))


def least(head: Cost) -> float:
    """Return the seconds of the smallest plan: one head, one epoch."""
    return head.once + head.run(1)


def make_plan(head: Cost, costs: Mapping[str, Cost], seconds: float, owners: Mapping[str, str]) -> Plan | None:
    """Return what fits into the time, or None if not even one head does.

    costs: by candidate, in the order of priority; owners: the strategy of each candidate, whose `once` is paid once.
    """
    usable = (1 - RESERVE) * seconds
    heads = plan_heads(head, usable)
    if heads is None:
        return None
    left = usable - heads.seconds
    halving, too_expensive = plan_halving(costs, left, owners)
    tried = {owners.get(name, name) for name in halving.names}
    out = {owners.get(name, name): costs[name] for name in too_expensive}
    skipped = [f"{name} ({format_seconds(cost.epoch)} per epoch)" for name, cost in out.items() if name not in tried]
    left -= halving.seconds
    known = [costs[name] for name in halving.names] or [head]
    epochs = halving.rungs[-1].epochs if halving.rungs else heads.epochs
    each = sorted((cost.run(epochs) for cost in known), reverse=True)
    confirmation = plan_confirmation(each, left)
    if len(known) > 1 and not confirmation.seeds:
        skipped.append("the repetition of the leaders with new seeds")
    left -= confirmation.seconds
    return Plan(heads, halving, confirmation, plan_final(_most_expensive(known, 1), left), tuple(skipped))


def smallest_plan(head: Cost, seconds: float) -> Plan:
    """Return the plan of one head in a time that is shorter than its measured cost."""
    return Plan(Heads(1, 1, min(least(head), seconds)), Halving(), Confirmation(), Final(), ("all strategies",))


def plan_heads(head: Cost, seconds: float) -> Heads | None:
    """Return as many heads, at as many epochs, as a part of the time allows; None if not even one fits into all of it."""
    if least(head) > seconds:
        return None
    share = head.once + HEADS * (seconds - head.once)
    for runs, epochs in ((MAXHEADS, HEAD_EPOCHS), (6, 20), (6, 10), (3, 10), (1, 10), (1, 5)):
        cost = head.once + head.run(epochs, runs)
        if cost <= share:
            return Heads(runs, epochs, cost)
    return Heads(1, 1, least(head))


def plan_halving(
    costs: Mapping[str, Cost], seconds: float, owners: Mapping[str, str]
) -> tuple[Halving, tuple[str, ...]]:
    """Return the search that fits into its part of the time, and the candidates that cost too much for it.

    A candidate is left out if a final run of it would not fit either. Of several searches, the one with the longest first
    step is taken that has at least six candidates.
    """
    share = HALVING * seconds
    final = (1 - HALVING) * (1 - CONFIRM) * seconds
    able = {name: cost for name, cost in costs.items() if cost.run(_MIN_FINAL_EPOCHS) <= final}
    found = [_fill(able, epochs, share, owners) for epochs in (3, 2, 1)]
    wanted = min(_ENOUGH, len(able))
    chosen = next((each for each in found if len(each) >= wanted), max(found, key=len))
    dropped = tuple(name for name in costs if name not in chosen)
    if not chosen:
        return Halving(), dropped
    first = (3, 2, 1)[found.index(chosen)]
    members = {name: costs[name] for name in chosen}
    spent = halving_seconds(members, [Rung(len(chosen), first)], owners)
    confirm = (1 - HALVING) * CONFIRM * seconds
    rungs = (Rung(len(chosen), first), *later_rungs(members, first, share - spent, confirm))
    return Halving(tuple(chosen), rungs, halving_seconds(members, rungs, owners)), dropped


def _fill(costs: Mapping[str, Cost], epochs: int, seconds: float, owners: Mapping[str, str]) -> list[str]:
    """Return the candidates, in their order, that fit together."""
    chosen: dict[str, Cost] = {}
    for name, cost in costs.items():
        more = {**chosen, name: cost}
        if halving_seconds(more, _rungs(len(more), epochs)[:2], owners) <= seconds:
            chosen = more
    return list(chosen)


def _rungs(number: int, epochs: int, steps: int = 2) -> tuple[Rung, ...]:
    """Return steps, each with half of the candidates, at least two of them, and twice the epochs."""
    rungs = [Rung(number, epochs)]
    while number > 1 and len(rungs) < steps and 2 * rungs[-1].epochs <= MAX_EPOCHS:
        rungs.append(Rung(max(2, math.ceil(rungs[-1].candidates / 2)), 2 * rungs[-1].epochs))
    return tuple(rungs)


def later_rungs(costs: Mapping[str, Cost], epochs: int, seconds: float, confirm: float) -> tuple[Rung, ...]:
    """Return the steps after the first, with these epochs, that fit into the time: as many as possible, at most four.

    costs: of the candidates that are left. In the worst case the most expensive stay in the search. confirm: seconds for
    repetitions, into which two runs must fit, and six runs for a third step: repetitions tell more than longer runs.
    """
    best: tuple[Rung, ...] = ()
    for number in range(2, 6):
        steps = _rungs(len(costs), epochs, number)
        each = sorted((cost.run(steps[-1].epochs) for cost in costs.values()), reverse=True)
        repeat = sum(each[:2]) if number == 2 else 2 * sum(each[:3])
        if len(steps) < number or _later_seconds(costs, steps) > seconds or repeat > confirm:
            break
        best = steps[1:]
    return best


def _later_seconds(costs: Mapping[str, Cost], rungs: Sequence[Rung]) -> float:
    return halving_seconds(costs, rungs, {}) - halving_seconds(costs, rungs[:1], {})


def fits_too(tried: Mapping[str, Cost], name: str, cost: Cost, epochs: int, seconds: float) -> bool:
    """Return whether one more candidate fits into the first step, and a step of the best half after it."""
    more = {**tried, name: cost}
    steps = _rungs(len(more), epochs, 2)[:2]
    return cost.once + cost.run(epochs) + _later_seconds(more, steps) <= seconds


def halving_seconds(costs: Mapping[str, Cost], rungs: Sequence[Rung], owners: Mapping[str, str]) -> float:
    """Return the cost of a search in which the most expensive candidates stay."""
    once = {owners.get(name, name): cost.once for name, cost in costs.items()}
    total, before = sum(once.values()), 0
    for rung in rungs:
        each = sorted((cost.run(rung.epochs - before) for cost in costs.values()), reverse=True)
        total, before = total + sum(each[: rung.candidates]), rung.epochs
    return total


def plan_confirmation(each: Sequence[float], seconds: float) -> Confirmation:
    """Return how many leaders and seeds fit into a part of the time; none if two leaders with one seed do not.

    each: seconds of a run of each candidate, the best candidate first.
    """
    for leaders, seeds in _REPEATS:
        if len(each) >= leaders and (cost := seeds * sum(each[:leaders])) <= CONFIRM * seconds:
            return Confirmation(leaders, seeds, cost)
    return Confirmation()


def plan_final(cost: Cost, seconds: float) -> Final:
    """Return the number of epochs that fits into the time, at most 50."""
    epochs = min(MAX_EPOCHS, int((seconds - cost.start) / max(cost.epoch, 1e-6)))
    return Final(epochs, cost.run(epochs)) if epochs >= 1 else Final()


def _most_expensive(costs: Iterable[Cost], epochs: int) -> Cost:
    return max(costs, key=lambda cost: (cost.epoch, cost.run(epochs)))


def format_seconds(seconds: float) -> str:
    """Return a duration for people: `4.2 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
