"""The objective of a sweep: train trials, one alone or several in the same steps, and return the metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from inat_ft.config import RunConfig
from inat_ft.errors import InatFtError
from inat_ft.settings import Override, load_config
from inat_ft_sweeps.base import TrialJob

if TYPE_CHECKING:
    from inat_ft.records import Epoch, RunRecord
    from inat_ft.setup import SharedSetup, TrainCallbacks
    from inat_ft.training import TrainJob


def metric_of(record: RunRecord, name: str) -> float:
    value = getattr(record.history[(record.best_epoch or 1) - 1], name)
    return math.nan if value is None else float(value)


@dataclass
class TrainingObjective:
    """Trains trials. An interrupted run is resumed from its last epoch. extra: settings of all trials."""

    metric: str
    cache: Path
    make_callbacks: Callable[[RunConfig], TrainCallbacks]
    extra: Sequence[Override] = ()

    @cached_property
    def _shared(self) -> SharedSetup:
        from inat_ft.setup import SharedSetup

        return SharedSetup()

    def __call__(self, job: TrialJob) -> float:
        (outcome,) = self.together([job])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def joins(self, job: TrialJob) -> bool:
        """Return whether the trial trains only the head, and so may be trained in the same steps as others."""
        try:
            return self._config(job).strategy.name == "head"
        except InatFtError:  # reported when the trial is run
            return False

    def together(self, jobs: Sequence[TrialJob]) -> list[float | Exception]:
        from inat_ft.engine.device import release_memory
        from inat_ft.training import train_together

        release_memory()
        outcomes: dict[int, float | Exception] = {}
        ready: dict[int, TrainJob] = {}
        for number, job in enumerate(jobs):
            try:
                ready[number] = self._train_job(job)
            except InatFtError as error:
                outcomes[number] = error
        for number, each in zip(ready, train_together(list(ready.values()), self._shared), strict=True):
            outcomes[number] = each if isinstance(each, Exception) else metric_of(each[0], self.metric)
        return [outcomes[number] for number in range(len(jobs))]

    def _config(self, job: TrialJob) -> RunConfig:
        return load_config(None, [*job.overrides, *self.extra, ("name", job.name), ("track.files", False)])

    def _train_job(self, job: TrialJob) -> TrainJob:
        from inat_ft.setup import Directories
        from inat_ft.training import TrainJob

        config = self._config(job)
        callbacks = self.make_callbacks(config)

        def on_epoch(epoch: Epoch) -> bool:
            callbacks.on_epoch(epoch)
            value = getattr(epoch, self.metric)
            return job.report(epoch.epoch, math.nan if value is None else value)

        directory = job.runs / job.name
        resumed = directory if directory.is_dir() else None
        return TrainJob(config, Directories(job.runs, self.cache), replace(callbacks, on_epoch=on_epoch), resumed)
