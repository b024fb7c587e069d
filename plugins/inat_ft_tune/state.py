"""The state of a tuning in its folder, which is written after every step, so that an interrupted one can continue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inat_ft.errors import UsageError
from inat_ft.records import write_text
from inat_ft.settings import Override
from inat_ft.validation import format_validation_error

FILE = "tune.json"
FINAL = "tune-"
"""Prefix of the names of final runs."""

Status = Literal["waiting", "paused", "done", "failed", "dropped"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Trial(_Model):
    """One run of the search.

    params: its settings that are not those of all runs. value: validation accuracy of its best epoch so far. epoch_s: seconds
    of each of its epochs.
    """

    name: str
    stage: Literal["heads", "halving", "confirmation", "final"]
    strategy: str
    params: dict[str, Any]
    seed: int
    directory: str
    """Folder of the run. Paused runs that are dropped are deleted."""
    status: Status = "waiting"
    value: float | None = None
    epochs: int = 0
    epoch_s: list[float] = []
    seconds: float = 0.0
    reason: str = ""
    of: str = ""
    """The candidate that a confirmation or the final run repeats."""

    @property
    def settings(self) -> str:
        """Strategy and settings for people, such as `full, lr 0.001`."""
        return ", ".join(
            [self.strategy, *(f"{key.rpartition('.')[2]} {value:g}" for key, value in self.params.items())]
        )

    def overrides(self) -> list[Override]:
        """Return the settings that differ from those of all runs."""
        return [("strategy.name", self.strategy), *self.params.items(), ("seed", self.seed)]


class StageTime(_Model):
    """Expected and measured seconds of a stage."""

    planned: float = 0.0
    taken: float = 0.0


class State(_Model):
    """Everything that is known about a tuning."""

    version: Literal[1] = 1
    data: str
    """Folder or manifest as given."""
    given: list[tuple[str, Any]] = []
    """Settings that the user gave, by dotted key."""
    asked: list[str] = []
    """Strategies that the user named."""
    settings: list[tuple[str, Any]]
    """Settings of all runs, by dotted key."""
    strategies: list[str]
    seed: int
    runs: str = "runs"
    """Folder of the final run."""
    budget_s: float = Field(gt=0)
    split: str = ""
    spent_s: float = Field(0.0, ge=0)
    head_cost: tuple[float, float, float] | None = None
    costs: dict[str, tuple[float, float, float]] = {}
    """Measured seconds of each strategy: once, for each run, and for each epoch."""
    images: dict[str, int] = {}
    skipped: dict[str, str] = {}
    rungs: list[tuple[int, int]] = []
    """Number of candidates and of epochs of each step of the search."""
    survivors: list[str] = []
    leaders: list[str] = []
    seeds: int = 0
    """New seeds of each leader."""
    finished: list[str] = []
    """Stages that are complete."""
    times: dict[str, StageTime] = {}
    trials: list[Trial] = []
    chosen: str = ""
    """Name of the candidate that was chosen."""
    run: str = ""
    """Folder of the run that was chosen."""
    summary: str = ""

    @model_validator(mode="after")
    def _has_its_trials(self) -> State:
        names, folders = ({getattr(trial, key) for trial in self.trials} for key in ("name", "directory"))
        named = {*self.leaders, *self.survivors, *([self.chosen] if self.chosen else [])}
        if lost := sorted(named - names) + ([self.run] if self.run and self.run not in folders else []):
            raise ValueError(f"the trial {lost[0]} is missing")
        return self

    def of_stage(self, *stages: str) -> list[Trial]:
        """Return the trials of some stages."""
        return [trial for trial in self.trials if trial.stage in stages]

    def confirmed(self, name: str) -> list[float]:
        """Return the results of a candidate with new seeds."""
        return [each.value or 0.0 for each in self.repetitions(name)]

    def repetitions(self, name: str) -> list[Trial]:
        """Return the complete runs of a candidate with new seeds."""
        return [each for each in self.of_stage("confirmation") if each.of == name and each.status == "done"]

    def trial(self, name: str) -> Trial:
        """Return the trial of that name."""
        return next(trial for trial in self.trials if trial.name == name)

    def add(self, trial: Trial) -> Trial:
        """Return the trial of that name; add it if it is new."""
        for known in self.trials:
            if known.name == trial.name:
                return known
        self.trials.append(trial)
        return trial


def write_state(state: State, folder: Path) -> None:
    """Write the file atomically."""
    write_text(folder / FILE, state.model_dump_json(indent=1) + "\n")


def _directory(trial: Trial, runs: str, folder: Path) -> str:
    """Return the folder of a trial. Raises ValueError if its name is a path, or a final run has another name."""
    is_final = trial.stage == "final"
    if (
        trial.name in ("", "..")
        or Path(trial.name).name != trial.name
        or (is_final and not trial.name.startswith(FINAL))
    ):
        raise ValueError(f"the trial {trial.name!r} has the name of another folder")
    return (Path(runs if is_final else folder / "runs") / trial.name).as_posix()


def read_state(folder: Path) -> State:
    """Read the state of a tuning. Raises UsageError if there is none, or if its file is damaged.

    Folders of runs can be deleted, so those of the search are always inside the folder, whatever the file says.
    """
    file = folder / FILE
    if not file.is_file():
        raise UsageError(f"nothing to resume in {folder}: it has no {FILE}", "start it: inat-ft tune DATA")
    try:
        state = State.model_validate(json.loads(file.read_text(encoding="utf-8")))
        for trial in state.trials:
            place = _directory(trial, state.runs, folder)
            state.run = place if state.run == trial.directory else state.run
            trial.directory = place
        return state
    except (OSError, ValueError, RecursionError) as error:
        text = format_validation_error(error, State).message if isinstance(error, ValidationError) else str(error)
        hint = f"remove {folder}, or choose another folder with --out"
        raise UsageError(f"cannot read {file}: {text}", hint) from None
