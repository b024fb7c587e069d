"""Early stopping."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class EarlyStop:
    """Says when a score has gone `patience` updates without rising by more than `min_delta`.

    NaN never counts as better; a patience of 0 never stops.
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    waited: int = 0

    def update(self, score: float) -> bool:
        """Take a score; whether it is time to stop."""
        if score > self.best + self.min_delta:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        return 0 < self.patience <= self.waited

    def start_anew(self) -> None:
        """Forget the waiting, since something else learns from now on; the best score stays."""
        self.waited = 0
