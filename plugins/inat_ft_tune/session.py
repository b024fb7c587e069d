"""A tuning in progress: its folder, its state, its time, the plan, and its trials."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from inat_ft.config import RunConfig
from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.errors import BusyError, StorageError, UsageError
from inat_ft.locks import lock_run
from inat_ft.progress import Log, ProgressBar, ignore_log
from inat_ft.settings import expand_user, load_config
from inat_ft.text import pluralize
from inat_ft_tune import planner
from inat_ft_tune.candidates import common_settings, strategy_params
from inat_ft_tune.measure import NO_TIME, measure_costs
from inat_ft_tune.planner import Cost, Plan, format_seconds
from inat_ft_tune.state import FINAL, StageTime, State, Trial, write_state
from inat_ft_tune.threads import choose_threads
from inat_ft_tune.trainer import Gate, train_trial

_MEASURING, _LEAST_MEASURING_S, _OVERRUN = 0.08, 5.0, 0.05
_CLOSING, _MOST_RESERVE = 1.5, 0.15
"""Time for the end of the last run and for the report: as a multiple of the start of a run, and at most, of the budget."""
_FINAL_PATIENCE = 8
_DOUBT = 4
"""How many times too high the measured cost of the first head may be. The features are then tried, and stopped if late."""
_UNUSUAL, _LONGEST = re.compile("[^A-Za-z0-9._-]+"), 80
"""Characters that the name of a run cannot have, and the length of the part of its name that is the folder's."""
_PASSES = 4
"""Cost of an epoch in which all layers are trained, as a multiple of computing all features once."""


class TooShortError(UsageError):
    """The budget is too short for one head."""


@dataclass
class Session:
    """What the stages share.

    base: the settings of the user. started: when the command began, as `time.monotonic`.
    """

    folder: Path
    state: State
    base: RunConfig
    cache: Path
    runs: Path
    started: float
    log: Log
    progress: ProgressBar
    warn: Log = ignore_log
    _spent: float = field(init=False, default=0.0)
    _was_finished: bool = field(init=False, default=False)
    _most_threads: int = field(init=False, default_factory=torch.get_num_threads)

    def __post_init__(self) -> None:
        self._spent, self._was_finished = self.state.spent_s, "final" in self.state.finished

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder. Raises BusyError while another process uses it."""
        made = [folder for folder in (self.folder, *self.folder.parents) if not os.path.lexists(folder)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _remove(made[1:])
            kind = UsageError if isinstance(error, FileExistsError | NotADirectoryError) else StorageError
            problem = f"cannot create the folder {self.folder}: {error.strerror}"
            raise kind(problem, "choose another folder with --out") from None
        try:
            with lock_run(self.folder):
                yield
        except BusyError as error:
            if str(self.folder / "runs") in error.message or str(self.runs) in error.message:
                raise
            raise BusyError(f"another process is using {self.folder}", "wait until it has finished") from None
        finally:
            torch.set_num_threads(self._most_threads)
            if {file.name for file in self.folder.iterdir()} <= {".lock"}:  # nothing was saved
                shutil.rmtree(self.folder, ignore_errors=True)
                _remove(made[1:])

    def save(self, is_counted: bool = True) -> None:
        """Write the state. is_counted: whether the time since the command began counts."""
        is_counted &= not self._was_finished  # the result is only shown again
        self.state.spent_s = self._spent + (time.monotonic() - self.started if is_counted else 0.0)
        write_state(self.state, self.folder)

    @property
    def left(self) -> float:
        """Seconds of the budget that stages may still use. A machine that starts runs slowly also ends them slowly."""
        used = self._spent + time.monotonic() - self.started
        reserve = planner.RESERVE * self.state.budget_s
        if self.state.head_cost is not None:
            reserve = max(reserve, min(_CLOSING * self.head_cost.start, _MOST_RESERVE * self.state.budget_s))
        return self.state.budget_s - reserve - used

    @property
    def end(self) -> float:
        """When every training stops, as `time.monotonic`."""
        return time.monotonic() + self.left + (planner.RESERVE + _OVERRUN) * self.state.budget_s

    def use_fastest_threads(self) -> None:
        """Use one thread while other programs use the cores, and all threads otherwise."""
        before = torch.get_num_threads()
        if (now := choose_threads(self._most_threads)) != before:
            reason = "other programs use the cores" if now < before else "the cores are free again"
            self.log(f"{pluralize(now, 'thread')} of {self._most_threads}: {reason}")

    @cached_property
    def manifest(self) -> Manifest:
        """The split."""
        root = self.base.data.root
        return read_manifest(Path(self.state.split), expand_user(root) if root else None)

    def measure(self) -> None:
        """Measure the costs, unless they are known."""
        state = self.state
        if state.head_cost is not None:
            return
        counts = {subset: len(self.manifest.rows(subset)) for subset in ("train", "val", "test")}
        state.images = counts
        state.settings = common_settings(self.base, state.split, counts["train"])
        configs = {name: self.config("", [("strategy.name", name)]) for name in ("head", *state.strategies)}
        names, seconds = list(configs), max(_LEAST_MEASURING_S, _MEASURING * state.budget_s)
        with self.progress("measuring", "strategies") as update:
            found = measure_costs(configs, self.cache, seconds, lambda name: update(names.index(name), len(names)))
            update(len(names), len(names))
        state.head_cost = (found.head.once, found.head.start, found.head.epoch)
        state.costs = {name: (cost.once, cost.start, cost.epoch) for name, cost in found.strategies.items()}
        state.skipped = {name: reason for name, reason in found.skipped.items() if reason != NO_TIME}
        guess = max(state.costs.values(), key=lambda cost: cost[2], default=None)
        for name in state.strategies:
            if found.skipped.get(name) == NO_TIME:  # assume the highest cost, to try it if there is time left
                state.costs[name] = guess or (0.0, found.head.start, _PASSES * found.head.once)
        state.strategies = [name for name in state.strategies if name in state.costs]
        self.save()

    @property
    def head_cost(self) -> Cost:
        """The measured cost of heads."""
        assert self.state.head_cost is not None
        return Cost(*self.state.head_cost)

    @cached_property
    def candidates(self) -> dict[str, tuple[str, dict[str, float]]]:
        """Strategy and settings of each candidate."""
        return dict(strategy_params(self.base, self.state.strategies))

    def costs(self) -> dict[str, Cost]:
        """The measured cost of each candidate."""
        return {name: Cost(*self.state.costs[strategy]) for name, (strategy, _) in self.candidates.items()}

    def plan(self) -> Plan:
        """Return what fits into the time that is left. Raises UsageError if nothing does."""
        owners = {name: strategy for name, (strategy, _) in self.candidates.items()}
        plan = planner.make_plan(self.head_cost, self.costs(), self.left / (1 - planner.RESERVE), owners)
        if plan is None:
            if planner.least(self.head_cost) > _DOUBT * self.left:
                raise self.too_short(planner.least(self.head_cost))
            plan = planner.smallest_plan(self.head_cost, self.left)
        for name in ("heads", "halving", "confirmation", "final"):
            self.state.times.setdefault(name, StageTime()).planned = getattr(plan, name).seconds
        return plan

    def too_short(self, seconds: float) -> TooShortError:
        """Return the error for a budget into which the features and one head do not fit. seconds: what they take."""
        needed = (seconds + self.state.budget_s - self.left) / (1 - planner.RESERVE)
        images = pluralize(self.state.images["train"] + self.state.images["val"], "image")
        return TooShortError(
            f"a budget of {format_seconds(self.state.budget_s)} is too short: "
            f"{format_seconds(self._spent + time.monotonic() - self.started)} are used, and the features of "
            f"{images} and one head take about {format_seconds(seconds)}",
            f"use --budget {int(needed / 60) + 1}m, a smaller network (--backbone), or smaller images "
            "(--set data.image_size=128)",
        )

    def config(self, name: str, overrides: list[tuple[str, object]]) -> RunConfig:
        """Return the configuration of a run."""
        named = [("name", name)] if name else []
        return load_config(None, [*self.state.settings, *overrides, *named, ("track.files", False)])

    def trial(
        self, name: str, stage: str, strategy: str, params: dict[str, float], seed: int, runs: Path | None = None
    ) -> Trial:
        """Return the trial of that name; add it if it is new. runs: folder of its run."""
        directory = ((runs or self.folder / "runs") / name).as_posix()
        known = {"name": name, "stage": stage, "strategy": strategy, "params": params, "seed": seed}
        return self.state.add(Trial.model_validate({**known, "directory": directory}))

    def candidate(self, name: str) -> Trial:
        """Return the trial of a candidate."""
        strategy, params = self.candidates[name]
        return self.trial(name, "halving", strategy, params, self.state.seed)

    def advance(self, trial: Trial, epochs: int, deadline: float, is_probe: bool = False) -> None:
        """Train a candidate to a number of epochs, if the time allows one more. is_probe: whatever its estimated cost."""
        if trial.status in ("waiting", "paused") and trial.epochs < epochs:
            cost = self.cost(trial)
            if is_probe or time.monotonic() + cost.start + cost.epoch <= deadline:
                self.train(trial, Gate(epochs, deadline, deadline if is_probe else self.end, is_probe=is_probe))
            elif trial.value is None:
                trial.reason = "there was no time for it"

    def train(self, trial: Trial, gate: Gate) -> None:
        """Train a trial as far as the gate lets it."""
        patience: list[tuple[str, object]] = []
        if trial.stage == "final" and "patience" not in self.base.stop.model_fields_set:
            patience = [("stop.patience", _FINAL_PATIENCE)]
        files = [("track.files", True)] if trial.stage == "final" else []
        config = self.config(trial.name, [*trial.overrides(), *patience])
        config = load_config(config, files) if files else config
        train_trial(trial, config, self.cache, gate, self.progress)
        if trial.status == "failed":
            self.log(f"{trial.settings} failed: {trial.reason}")

    def drop(self, trial: Trial) -> None:
        """Leave a candidate out of the search, and delete its checkpoint."""
        if trial.status in ("waiting", "paused"):
            trial.status = "dropped"
            shutil.rmtree(trial.directory, ignore_errors=True)

    def costs_now(self) -> dict[str, Cost]:
        """Return the cost of each candidate, as the runs so far show it."""
        return {name: self.cost_of(strategy) for name, (strategy, _) in self.candidates.items()}

    def cost_of(self, strategy: str) -> Cost:
        """Return the cost of a strategy: measured in its own runs, if there are any."""
        runs = [t for t in self.state.of_stage("halving") if t.strategy == strategy and t.epoch_s]
        cost = Cost(*self.state.costs[strategy])
        if not runs:
            return cost
        return Cost(0.0, cost.start, max(min(trial.epoch_s) for trial in runs))

    def cost(self, trial: Trial) -> Cost:
        """Return the cost of a run with these settings: measured in its own epochs, if there are at least two."""
        cost = self.head_cost if trial.strategy == "head" else self.cost_of(trial.strategy)
        return Cost(cost.once, cost.start, max(trial.epoch_s[1:])) if len(trial.epoch_s) > 1 else cost

    def free_name(self) -> str:
        """Return a name for the final run that no other run has."""
        base = FINAL + _UNUSUAL.sub("-", self.folder.resolve().name)[:_LONGEST].strip("-.")
        name, number = base, 2
        while (self.runs / name).exists():
            name, number = f"{base}-{number}", number + 1
        return name


def _remove(folders: Sequence[Path]) -> None:
    """Remove empty folders, the innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
