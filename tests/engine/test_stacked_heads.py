"""Heads that are trained in the same steps get the results of heads trained alone."""

from collections.abc import Sequence

import pytest
import torch
from inat_ft_stacked_heads import stacked_heads
from inat_ft_stacked_heads.stacked_heads import run_stacked, stack_key
from torch import nn

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches, ResidentRows
from inat_ft.engine.device import choose_compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit, run_tasks
from inat_ft.engine.forward import StepConfig
from inat_ft.engine.plan import make_plan
from inat_ft.errors import InatFtError
from inat_ft.models.dropout import Dropout
from inat_ft.models.net import Net
from inat_ft.strategies.stages import Full, Head

CLASSES, WIDTH = 4, 24


class Features:
    """Cached features of the last stage, shared by all runs."""

    def __init__(self, batch_size: int = 16) -> None:
        random = torch.Generator().manual_seed(0)
        self.labels = torch.randint(CLASSES, (90,), generator=random)
        data = torch.randn(90, WIDTH, generator=random) + self.labels[:, None]
        self.sources = ResidentRows(data[:60]), ResidentRows(data[60:])
        self.batch_size = batch_size

    def _batches(self, which: int, prefix: int) -> Batches:
        labels = self.labels[:60] if which == 0 else self.labels[60:]
        return Batches(self.sources[which], labels, self.batch_size, lambda rows, numbers: rows.float(), prefix)

    def train(self, prefix: int, epoch: int) -> Batches:
        return self._batches(0, prefix)

    def val(self, prefix: int, epoch: int) -> Batches:
        return self._batches(1, prefix)

    def sample_order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(60, generator=generator)


def tasks_of(features: Features, state: TrainState, strategy=Head, dropout: float = 0.0, seed: int = 0, **optim):
    torch.manual_seed(seed)
    head = nn.Sequential(Dropout(dropout), nn.Linear(WIDTH, CLASSES))
    net = Net("small", {"a": nn.Identity() if strategy is Head else nn.Linear(WIDTH, WIDTH)}, head, "fc", seed)
    config = OptimConfig(batch_size=features.batch_size, **optim)
    plan = make_plan(strategy(), net, config.epochs)
    return fit(
        features,
        plan,
        StepConfig(config, seed, accumulation_steps=config.accumulate),
        choose_compute("cpu", "fp32"),
        state,
    )


SETTINGS = [
    {"dropout": 0.0, "lr": 1e-2, "epochs": 4},
    {"dropout": 0.3, "lr": 1e-3, "epochs": 2},
    {"dropout": 0.3, "lr": 1e-2, "epochs": 4, "weight_decay": 0.01},
    {"dropout": 0.2, "lr": 1e-2, "epochs": 3, "schedule": "constant"},
    {"dropout": 0.0, "lr": 1e-3, "epochs": 4, "optimizer": "sgd"},
]


def new_state() -> TrainState:
    return TrainState(EarlyStopping(0))


def run_together(runs: Sequence) -> list[TrainState]:
    """Advance all runs, an epoch at a time, in as few stacks as possible."""
    waiting, ended = {number: next(run) for number, run in enumerate(runs)}, {}
    while waiting:
        numbers = list(waiting)
        assert len({stack_key(task) for task in waiting.values()}) == 1
        for number, result in zip(numbers, run_stacked(list(waiting.values())), strict=True):
            try:
                waiting[number] = runs[number].send(result)
            except StopIteration as end:
                ended[number] = end.value
                del waiting[number]
    return [ended[number] for number in range(len(runs))]


@pytest.mark.parametrize("seeds", [(0, 0, 0, 0, 0), (0, 0, 1, 1, 0)])
def test_stacked_runs_equal_runs_alone(seeds: tuple[int, ...]) -> None:
    features = Features()
    if len(set(seeds)) > 1:  # the same order for all, but different dropout masks
        features.sample_order = lambda generator: torch.arange(60)
    alone = [
        run_tasks(tasks_of(features, new_state(), seed=s, **each)) for s, each in zip(seeds, SETTINGS, strict=True)
    ]
    runs = [tasks_of(features, new_state(), seed=s, **each) for s, each in zip(seeds, SETTINGS, strict=True)]
    for one, other in zip(alone, run_together(runs), strict=True):
        assert [epoch.val_accuracy for epoch in one.history] == [epoch.val_accuracy for epoch in other.history]
        for a, b in zip(one.history, other.history, strict=True):
            assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5) and a.lr == b.lr
            assert a.val_loss == pytest.approx(b.val_loss, rel=1e-5)
        assert one.best_epoch == other.best_epoch and one.steps == other.steps
        torch.testing.assert_close(one.best_logits, other.best_logits, rtol=1e-4, atol=1e-5)
        for name, tensor in one.best_weights.items():
            torch.testing.assert_close(tensor, other.best_weights[name], rtol=1e-4, atol=1e-5)


def test_a_run_that_diverges_fails_alone() -> None:
    features = Features()
    first, second = tasks_of(features, new_state(), lr=1e-2), tasks_of(features, new_state(), lr=1e-2, optimizer="sgd")
    tasks = [next(first), next(second)]
    with torch.no_grad():
        tasks[1].forward.net.head[1].weight.fill_(float("nan"))
    good, bad = run_stacked(tasks)
    assert good.train_loss > 0 and isinstance(bad, InatFtError) and "diverged" in bad.message


def test_only_runs_with_the_same_features_and_batches_are_stacked() -> None:
    features = Features()
    key = stack_key(next(tasks_of(features, new_state(), lr=1e-3)))
    assert key is not None and key == stack_key(next(tasks_of(features, new_state(), lr=1e-2, dropout=0.5)))
    assert key != stack_key(next(tasks_of(Features(), new_state())))
    assert key != stack_key(next(tasks_of(features, new_state(), seed=1)))
    assert key != stack_key(next(tasks_of(features, new_state(), label_smoothing=0.1)))
    for alone in ({"clip_norm": 1.0}, {"average": "ema"}, {"accumulate": 2}, {"strategy": Full}):
        assert stack_key(next(tasks_of(features, new_state(), **alone))) is None


def test_heads_that_do_not_fit_in_memory_are_restored_and_trained_one_by_one(monkeypatch) -> None:
    features = Features()
    expected = [run_tasks(tasks_of(features, new_state(), **each)).history[0] for each in SETTINGS]

    def full(tasks: Sequence) -> None:
        for task in tasks:
            task.run()  # the heads and the moments of the optimizers change
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stacked_heads, "run_stacked", full)
    tasks = [next(tasks_of(features, new_state(), **each)) for each in SETTINGS]
    found = stacked_heads.run_together(tasks)
    assert [each.train_loss for each in found] == [each.train_loss for each in expected]
    assert [each.val_loss for each in found] == [each.val_loss for each in expected]


def test_another_error_of_a_stack_is_not_hidden_and_one_task_alone_keeps_its_own(monkeypatch) -> None:
    def broken(tasks: Sequence) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(stacked_heads, "run_stacked", broken)
    features = Features()
    tasks = [next(tasks_of(features, new_state(), **each)) for each in SETTINGS[:2]]
    with pytest.raises(RuntimeError, match="broken"):
        stacked_heads.run_together(tasks)
    good = next(tasks_of(Features(), new_state(), clip_norm=1.0))
    bad = next(tasks_of(Features(), new_state(), clip_norm=1.0))
    with torch.no_grad():
        bad.forward.net.head[1].weight.fill_(float("nan"))
    error, result = stacked_heads.run_together([bad, good])
    assert isinstance(error, InatFtError) and "diverged" in error.message and result.train_loss > 0
