"""Which epoch is best, and early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inat_ft.records import Epoch


@dataclass
class EarlyStopping:
    """Stops when the monitored metric has not improved for `patience` epochs.

    An improvement is a change by more than `min_delta` in the right direction; with a min_delta of 0 also the same value
    at a lower validation loss. A metric that is not finite is never better; a patience of 0 never stops.
    """

    patience: int
    min_delta: float = 0.0
    monitor: str = "val_accuracy"
    """Name of a metric in the record of an epoch."""
    best: tuple[float, float] = (-math.inf, -math.inf)
    num_bad_epochs: int = 0

    def score(self, epoch: Epoch) -> tuple[float, float]:
        """Return how good an epoch is, for comparison: by the monitored metric, then by the validation loss."""
        sign = -1 if self.monitor.endswith("loss") else 1
        value, loss = getattr(epoch, self.monitor), epoch.val_loss
        return _or_worst(value and sign * value), _or_worst(loss and -loss)

    def step(self, epoch: Epoch) -> bool:
        """Take an epoch into account; return whether it is time to stop."""
        score = self.score(epoch)
        if score[0] > self.best[0] + self.min_delta or (self.min_delta == 0 and score > self.best):
            self.best, self.num_bad_epochs = score, 0
        else:
            self.num_bad_epochs += 1
        return 0 < self.patience <= self.num_bad_epochs

    def reset(self) -> None:
        """Reset the number of epochs without improvement, since something else learns from now on."""
        self.num_bad_epochs = 0


def _or_worst(value: float | None) -> float:
    return -math.inf if value is None or not math.isfinite(value) else value
