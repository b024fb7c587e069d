"""What a finished run suggests to try next."""

from __future__ import annotations

from collections.abc import Sequence

from inat_ft.records import Advice, Epoch

_FEW_STEPS = 100
_STILL_FALLING = 0.98


def advise(history: Sequence[Epoch], steps: int, stopped_early: bool) -> list[Advice]:
    """Return why more training may help; nothing when every validation image is right, or when training has diverged.

    steps: optimizer steps in all. The training loss is still falling when the last epoch's is at least 2 % lower than any
    before; after early stopping that means overfitting, and is no reason to train longer.
    """
    diverged = any(epoch.val_loss is None for epoch in history)
    if diverged or max((epoch.val_accuracy or 0.0 for epoch in history), default=0.0) == 1:
        return []
    losses = [epoch.train_loss for epoch in history if epoch.train_loss is not None]
    falling = len(losses) > 1 and losses[-1] < _STILL_FALLING * min(losses[:-1])
    found = [Advice.FEW_STEPS] if steps < _FEW_STEPS else []
    return [*found, Advice.LOSS_STILL_FALLING] if falling and not stopped_early else found
