"""Which epoch is an improvement, and when training stops."""

import math

import pytest

from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.records import Epoch


def epoch(accuracy: float | None = None, loss: float | None = None) -> Epoch:
    return Epoch(epoch=1, val_accuracy=accuracy, val_loss=loss)


def stops(stopping: EarlyStopping, *epochs: Epoch) -> list[bool]:
    return [stopping.step(each) for each in epochs]


@pytest.mark.parametrize(
    ("patience", "expected"),
    [(0, [False] * 5), (1, [False, True, True, True, True]), (3, [False, False, False, True, True])],
)
def test_training_stops_after_patience_epochs_without_improvement(patience: int, expected: list[bool]) -> None:
    assert stops(EarlyStopping(patience), *[epoch(0.5, 1.0)] * 5) == expected


def test_an_improvement_starts_the_count_again() -> None:
    stopping = EarlyStopping(2)
    assert stops(stopping, epoch(0.5), epoch(0.4), epoch(0.6), epoch(0.6), epoch(0.5)) == [False] * 4 + [True]
    assert (stopping.best, stopping.num_bad_epochs) == ((0.6, -math.inf), 2)
    stopping.reset()
    assert stopping.num_bad_epochs == 0 and stopping.best[0] == 0.6


def test_an_equal_metric_with_a_lower_loss_is_an_improvement() -> None:
    stopping = EarlyStopping(1)
    assert stops(stopping, epoch(0.5, 1.0), epoch(0.5, 0.9), epoch(0.5, 0.9)) == [False, False, True]
    assert stopping.best == (0.5, -0.9)
    assert stops(EarlyStopping(1), epoch(0.5, 1.0), epoch(0.4, 0.1)) == [False, True]


def test_an_improvement_is_more_than_min_delta() -> None:
    assert stops(EarlyStopping(1, min_delta=0.25), epoch(0.5, 1.0), epoch(0.75, 0.5)) == [False, True]
    assert stops(EarlyStopping(1, min_delta=0.25), epoch(0.5, 1.0), epoch(0.78, 1.0)) == [False, False]
    assert stops(EarlyStopping(1, min_delta=1e-9), epoch(0.5, 1.0), epoch(0.5, 0.1)) == [False, True]


@pytest.mark.parametrize("monitor", ["val_loss", "train_loss"])
def test_a_lower_loss_is_better(monitor: str) -> None:
    stopping = EarlyStopping(2, monitor=monitor)
    losses = [Epoch(epoch=1, val_loss=loss, train_loss=loss) for loss in (1.0, 0.5, 0.7, 0.6)]
    assert stops(stopping, *losses) == [False, False, False, True]
    assert stopping.best == (-0.5, -0.5) and stopping.score(losses[1]) > stopping.score(losses[2])


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_worse_than_all_others(bad: float | None) -> None:
    for monitor in ("val_accuracy", "val_loss"):
        stopping = EarlyStopping(1, monitor=monitor)
        poor = Epoch.model_construct(epoch=1, val_accuracy=bad, val_loss=bad)
        assert stopping.score(poor) == (-math.inf, -math.inf) < stopping.score(epoch(0.0, 1e9))
        assert stops(stopping, poor) == [True] and stops(stopping, epoch(0.0, 1e9)) == [False]
