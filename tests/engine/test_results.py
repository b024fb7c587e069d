"""The results of a run: messages, JSON, exit, and the state of the process afterwards."""

import gc
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inat_ft_lr_finder.range_test import find_lr
from safetensors.torch import load_file
from torch import nn

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches, ResidentRows
from inat_ft.data.manifest import read_manifest, write_manifest
from inat_ft.engine.advice import advise
from inat_ft.engine.device import Compute, release_memory, reproducible
from inat_ft.engine.forward import Forward, StepConfig, Tail
from inat_ft.engine.loops import Batch, evaluate, step
from inat_ft.engine.plan import make_plan
from inat_ft.errors import UsageError
from inat_ft.records import Advice, Epoch, read_record
from inat_ft.strategies import Group, Strategy
from inat_ft.testing import tiny_net
from inat_ft.training import TrainCallbacks, train

CPU = Compute(torch.device("cpu"), "fp32", forced=True)
TINY = ["--backbone", "cnn", "--set", "model.filters=16", "--image-size", "32", "--precision", "fp32"]


def strict(text: str) -> object:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


class TestNotFinite:
    @pytest.mark.parametrize("bad", [{1, 2, 3}, {2}], ids=["all", "one"])
    def test_a_validation_loss_that_is_not_finite_is_reported_and_null_in_json(
        self, invoke, manifest_file, monkeypatch, bad: set[int]
    ) -> None:
        epochs = []

        def broken(net, batches, compute, prefix):
            loss, accuracy, logits = evaluate(net, batches, compute, prefix)
            epochs.append(loss)
            return (math.nan, 0.0, logits * math.nan) if len(epochs) in bad else (loss, accuracy, logits)

        monkeypatch.setattr("inat_ft.engine.fit.evaluate", broken)
        arguments = ["--epochs", 3, "--patience", 0, "--name", "n", "--json"]
        ran = invoke("train", "--split", manifest_file, *TINY, *arguments)
        assert ran.code == 0, ran.err
        assert "the validation loss is nan after epoch 2" in ran.err and "--lr" in ran.err
        shown = strict(ran.out)
        assert [epoch["val_loss"] is None for epoch in shown["history"]] == [number in bad for number in (1, 2, 3)]
        assert strict(Path("runs/n/record.json").read_text())["history"] == shown["history"]
        lines = Path("runs/n/metrics.jsonl").read_text().splitlines()
        assert [strict(line)["val_loss"] for line in lines] == [epoch["val_loss"] for epoch in shown["history"]]
        assert bool(shown["predictions"]) == Path("runs/n/predictions-val.csv").exists() == (bad == {2})
        assert read_record(Path("runs/n"))[0].best_epoch == shown["best_epoch"] and shown["best_epoch"] not in bad - {1}

    def test_an_image_whose_logits_are_not_finite_counts_as_wrong(self) -> None:
        net = tiny_net()
        with torch.no_grad():
            net.head[1].weight.fill_(math.nan)
        images = Batches(
            ResidentRows(torch.zeros(4, 3, 16, 16)), torch.zeros(4, dtype=torch.int64), 2, lambda rows, _: rows
        )
        loss, accuracy, _ = evaluate(net, images, CPU)
        assert math.isnan(loss) and accuracy == 0

    def test_a_range_test_that_explodes_prints_json(self, invoke, manifest_file, monkeypatch) -> None:
        from inat_ft_lr_finder.range_test import LRFinderResult

        found = LRFinderResult([1e-6, 1e-5, 1e-4], [1.0, math.inf, math.nan], [1.0, 2.0, 4.0], None)
        monkeypatch.setattr("inat_ft_lr_finder.range_test.lr_range_test", lambda *given: found)
        ran = invoke("train", "--split", manifest_file, *TINY, "--find-lr", "--json")
        assert ran.code == 0, ran.err
        assert strict(ran.out)["loss"] == [1.0, None, None]


class TestAdvice:
    def history(self, *losses: float, accuracy: float = 0.5) -> list[Epoch]:
        return [Epoch(epoch=n, train_loss=loss, val_accuracy=accuracy, val_loss=1) for n, loss in enumerate(losses, 1)]

    def test_few_steps_and_a_falling_loss_give_advice(self) -> None:
        assert advise(self.history(2.0, 1.5), 10, False) == [Advice.FEW_STEPS, Advice.LOSS_STILL_FALLING]
        assert advise(self.history(2.0, 1.5), 1000, False) == [Advice.LOSS_STILL_FALLING]
        assert advise(self.history(2.0, 1.5), 10, True) == [Advice.FEW_STEPS]
        assert advise(self.history(2.0, 1.99), 1000, False) == advise(self.history(2.0), 1000, False) == []
        assert advise(self.history(2.0, 1.5, accuracy=1.0), 10, False) == []
        assert (
            advise([*self.history(2.0), Epoch(epoch=2, train_loss=1.0)], 10, False) == []
        )  # there is a warning already

    def test_a_short_run_suggests_more_epochs_and_a_range_test(self, invoke, manifest_file) -> None:
        arguments = ["train", "--split", manifest_file, "--backbone", "resnet18", "--weights", "none", "--mode", "head"]
        arguments += ["--image-size", 32, "--precision", "fp32", "--lr", "1e-2", "--epochs", 2, "--batch-size", 36]
        ran = invoke(*arguments, "--json")
        assert ran.code == 0, ran.err
        record = strict(ran.out)
        assert record["optimizer_steps"] == 2 and "few_steps" in record["advice"]
        assert record["advice"] == strict(Path(record["directory"], "record.json").read_text())["advice"]
        (line,) = (line for line in ran.err.splitlines() if "optimizer steps" in line)
        assert line.startswith("only 2 optimizer steps") and "--epochs 30" in line and "--find-lr" in line
        assert ("still falling" in line) == ("loss_still_falling" in record["advice"])


class TestStopping:
    @pytest.mark.parametrize(
        ("epoch", "expected", "unexpected"),
        [(1, "run the same command again", "--resume"), (2, "inat-ft train --resume runs/n", "same command")],
    )
    def test_ctrl_c_prints_how_to_resume(self, invoke, manifest_file, monkeypatch, epoch, expected, unexpected) -> None:
        def interrupt(done) -> None:
            if done.epoch == epoch:
                raise KeyboardInterrupt

        arguments = ["train", "--split", manifest_file, *TINY, "--epochs", 2, "--name", "n"]
        with monkeypatch.context() as patched:
            patched.setattr("inat_ft.cli.train.callbacks", lambda config: TrainCallbacks(on_epoch=interrupt))
            ran = invoke(*arguments)
        assert ran.code == 130 and expected in ran.err and unexpected not in ran.err, ran.err
        again = invoke("train", "--resume", "runs/n") if epoch == 2 else invoke(*arguments)
        assert again.code == 0, again.err

    def test_progress_within_an_epoch_shows_loss_and_accuracy_of_every_step(self, config, directories) -> None:
        seen = []
        train(
            config(optim__epochs=1),
            directories,
            TrainCallbacks(on_step=lambda done, total, loss, accuracy: seen.append((done, loss, accuracy))),
        )
        assert len({loss for _, loss, _ in seen}) == len(seen) == 5
        assert all(0 <= accuracy <= 1 for _, _, accuracy in seen)


def test_a_single_class_is_refused(config, directories, manifest_file, tmp_path) -> None:
    whole = read_manifest(manifest_file)
    rows = [row for row, label in enumerate(whole.labels) if label == 0]
    one = replace(
        whole,
        path=tmp_path / "one.csv",
        classes=whole.classes[:1],
        paths=[whole.paths[row] for row in rows],
        labels=whole.labels[rows],
        subsets=whole.subsets[rows],
        hashes=[whole.hashes[row] for row in rows],
        groups=[whole.groups[row] for row in rows],
        fingerprint="",
    )
    write_manifest(one)
    for act in (train, find_lr):
        with pytest.raises(UsageError, match="single class, class0"):
            act(config(data__split=str(tmp_path / "one.csv")), directories)
    assert not directories.runs.exists()


class TestDeterministic:
    def test_runs_are_equal_and_the_setting_is_restored(self, config, directories, monkeypatch) -> None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
        seen = []

        def look(*_: object) -> None:
            seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")))

        settings = config(compute__deterministic=True, strategy__name="full")
        runs = [train(settings, directories, TrainCallbacks(on_step=look)) for _ in range(2)]
        assert set(seen) == {(True, ":4096:8")}
        assert (
            not torch.are_deterministic_algorithms_enabled() and os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
        )
        a, b = (load_file(directory / "model.safetensors") for _, directory in runs)
        assert all(torch.equal(a[name], b[name]) for name in a)

    def test_the_previous_setting_is_restored_after_an_error(self, monkeypatch) -> None:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            with pytest.raises(ZeroDivisionError), reproducible(deterministic=True):
                assert not torch.is_deterministic_algorithms_warn_only_enabled()
                raise ZeroDivisionError
            assert torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
        finally:
            torch.use_deterministic_algorithms(False)

    @pytest.mark.parametrize("act", [train, find_lr])
    def test_the_random_state_of_the_process_is_restored(self, config, directories, act) -> None:
        torch.manual_seed(5)
        before = torch.get_rng_state()
        act(config(optim__epochs=1, model__backbone="cnn", model__filters=16), directories)
        assert torch.equal(torch.get_rng_state(), before)


def test_training_does_not_change_the_garbage_collector(config, directories) -> None:
    before = gc.get_freeze_count()
    train(config(optim__epochs=1), directories)
    release_memory()
    assert gc.get_freeze_count() == before


def test_no_object_is_frozen_at_exit() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count()))
import inat_ft.training
gc.freeze()
assert gc.get_freeze_count() > 1000
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert ran.stdout == "0\n"


@pytest.mark.parametrize("augment", ["standard", "flip"])
def test_views_are_the_same_with_and_without_a_cache(config, directories, augment: str) -> None:
    settings = {"data__augment": augment, "optim__epochs": 3, "stop__patience": 0, "optim__batch_size": 16}
    settings |= {"data__views": 2} if augment == "standard" else {}
    runs = [train(config(compute__cache=cache, **settings), directories)[0] for cache in ("prefix", "none", "packed")]
    assert "prefix cache: on" in runs[0].compute["decisions"][0]
    histories = [[epoch.model_dump(exclude={"seconds"}) for epoch in run.history] for run in runs]
    assert histories[0] == histories[1] == histories[2]


class All(Strategy):
    def groups(self, net, epoch):
        return [Group(net.parameters())]


class Switching(Strategy):
    def groups(self, net, epoch):
        return [Group(net.parameters())] if epoch % 2 else [Group(net.head.parameters())]


@pytest.mark.parametrize("strategy", [All(), Switching()])
def test_queries_of_a_plan_take_linear_time(strategy: Strategy) -> None:
    def calls(epochs: int) -> int:
        plan, count = make_plan(strategy, tiny_net(), epochs), 0

        def counting(frame, event, argument) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counting)
        try:
            for epoch in range(epochs):
                prefix = plan.frozen_prefix(epoch, since_start=True)
                plan.last_trained_epoch(prefix, epoch), plan.last_trained_epoch(plan.frozen_prefix(epoch), epoch)
                plan.starts_phase(epoch), plan.phase(epoch)
        finally:
            sys.setprofile(None)
        return count

    assert calls(400) < 6 * calls(100)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights_give_the_gradients_of_cross_entropy_loss(parts: int, smoothing: float) -> None:
    torch.manual_seed(0)
    weights, images, labels = torch.tensor([5.0, 1.0, 0.2]), torch.rand(9, 3, 16, 16), torch.arange(9) % 2 * 2
    nets = [tiny_net(), tiny_net()]
    for net in nets:
        net.head[0].p = 0.0
        net.set_trainable(net.head.parameters())
        net.train()
    optimizers = [torch.optim.SGD(net.head.parameters(), lr=0.5) for net in nets]
    nn.CrossEntropyLoss(weight=weights, label_smoothing=smoothing)(nets[0](images), labels).backward()
    optimizers[0].step()
    config = OptimConfig(label_smoothing=smoothing)
    batches = Batches(ResidentRows(images), labels, 9, lambda rows, _: rows)
    forward = Forward(nets[1], batches, len(nets[1].stages), CPU, Tail(nets[1], len(nets[1].stages), CPU))
    step_config = StepConfig(config, class_weights=weights, accumulation_steps=parts)
    step(forward, step_config, optimizers[1], Batch(9, images, labels, labels))
    for a, b in zip(nets[0].head.parameters(), nets[1].head.parameters(), strict=True):
        torch.testing.assert_close(a, b)
