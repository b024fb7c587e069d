"""Suggestions at the end of a run."""

from collections.abc import Sequence

from inat_ft.records import Advice, Epoch

_FEW_STEPS = 100
_STILL_FALLING = 0.98


def advise(history: Sequence[Epoch], steps: int, stopped_early: bool) -> list[Advice]:
    """Return why longer training may help.

    steps: number of optimizer steps. The training loss is still falling if it is at least 2% lower in the last epoch than
    in all others; after early stopping this indicates overfitting and is not reported. The list is empty for a run that
    diverged or that classifies every validation image correctly.
    """
    diverged = any(epoch.val_loss is None for epoch in history)
    if diverged or max((epoch.val_accuracy or 0.0 for epoch in history), default=0.0) == 1:
        return []
    losses = [epoch.train_loss for epoch in history if epoch.train_loss is not None]
    falling = len(losses) > 1 and losses[-1] < _STILL_FALLING * min(losses[:-1])
    advice = [Advice.FEW_STEPS] if steps < _FEW_STEPS else []
    return [*advice, Advice.LOSS_STILL_FALLING] if falling and not stopped_early else advice
