"""Early stopping, and the comparison that decides which epoch is best."""

import math
from dataclasses import dataclass

from inat_ft.records import Epoch


@dataclass
class EarlyStopping:
    """Stop when the monitored metric has not improved for `patience` epochs; 0 never stops.

    An improvement is a change by more than `min_delta` in the right direction. With a min_delta of 0, an equal metric with
    a lower validation loss is an improvement too. A value that is not finite is worse than all others.
    """

    patience: int
    min_delta: float = 0.0
    monitor: str = "val_accuracy"
    """Name of a metric in the record of an epoch."""
    best: tuple[float, float] = (-math.inf, -math.inf)
    num_bad_epochs: int = 0

    def score(self, epoch: Epoch) -> tuple[float, float]:
        """Return a tuple that is higher for better epochs: the monitored metric, then the validation loss."""
        sign = -1 if self.monitor.endswith("loss") else 1
        return _finite(getattr(epoch, self.monitor), sign), _finite(epoch.val_loss, -1)

    def step(self, epoch: Epoch) -> bool:
        """Record an epoch and return whether to stop."""
        score = self.score(epoch)
        if score[0] > self.best[0] + self.min_delta or (self.min_delta == 0 and score > self.best):
            self.best, self.num_bad_epochs = score, 0
        else:
            self.num_bad_epochs += 1
        return 0 < self.patience <= self.num_bad_epochs

    def reset(self) -> None:
        """Set the number of epochs without improvement to 0."""
        self.num_bad_epochs = 0


def _finite(value: float | None, sign: int) -> float:
    return -math.inf if value is None or not math.isfinite(value) else sign * value
