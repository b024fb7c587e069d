"""Options of the training step: schedules, clipping, mixing, regularization, averages, memory."""

import dataclasses
import math
import shutil

import pytest
import torch
from inat_ft_averaging.averages import make_average
from inat_ft_cnn.cnn import Cnn
from inat_ft_lr_finder.range_test import find_lr, steepest_descent_lr
from safetensors.torch import load_file
from torch import nn

from inat_ft.config import OptimConfig
from inat_ft.engine.device import Compute
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState, fit, run_tasks
from inat_ft.engine.forward import StepConfig
from inat_ft.engine.optimizer import lr_factor
from inat_ft.engine.plan import make_plan
from inat_ft.errors import InatFtError, UsageError
from inat_ft.images.augment import blender
from inat_ft.models.net import make_net
from inat_ft.settings import load_config
from inat_ft.strategies import Group, Strategy
from inat_ft.testing import SyntheticData, tiny_net
from inat_ft.training import TrainCallbacks, prepare, train


@pytest.fixture
def pretrained(config, tmp_path):
    """Like `config`, with pretrained weights, which l2-sp and wise-ft require."""
    torch.manual_seed(0)
    torch.save(Cnn(filters=16).build(3, 32, 0.0).state_dict(), tmp_path / "start.pth")
    return lambda **settings: config(**{"model__weights": str(tmp_path / "start.pth"), **settings})


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run[1] / "model.safetensors")


def start(settings) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in prepare(settings).plan.net.original_state_dict().items()}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], prefix: str = "block") -> float:
    """Return the L2 distance of the parameters, without BatchNorm statistics."""
    names = [name for name in a if name.startswith(prefix) and name.endswith(("weight", "bias"))]
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in names))


class All(Strategy):
    def groups(self, net, epoch):
        return [Group(net.parameters())]


def test_layer_decay_lowers_the_learning_rate_per_layer() -> None:
    net = tiny_net()
    scales = {net.original_name(name): None for name, _ in net.named_parameters()}
    plan = make_plan(All(), net, 1, layer_decay=0.5)
    scales = {net.original_name(name): plan.epochs[0].scales[parameter] for name, parameter in net.named_parameters()}
    assert scales["fc.weight"] == scales["fc.bias"] == 1
    assert scales["block4.0.weight"] == scales["block4.1.weight"] == 0.5  # BatchNorm belongs to its convolution
    assert scales["block1.0.weight"] == 0.5**4


def test_clip_norm_limits_a_step_of_sgd(config, directories) -> None:
    settings = config(
        strategy__name="full", optim__optimizer="sgd", optim__momentum=0, optim__epochs=1, optim__batch_size=36,
        optim__lr=1.0, optim__clip_norm=0.01, model__dropout=0,
    )  # fmt: skip
    before, after = start(settings), weights(train(settings, directories))
    learned = [name for name in before if "running" not in name and "num_" not in name]
    moved = math.sqrt(sum(float((after[name] - before[name]).square().sum()) for name in learned))
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0), (0, 1.0), (0.4, 1.0)])
def test_mixed_images_have_targets_that_sum_to_one(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    mix = blender(mixup, cutmix, 3)
    assert mix is not None
    inputs, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    changed = 0
    for _ in range(8):
        mixed, targets = mix(inputs, labels)
        assert mixed.shape == inputs.shape and torch.allclose(targets.sum(1), torch.ones(8))
        changed += not torch.equal(mixed, inputs)
    assert changed >= 6


def test_a_run_with_mixed_images_resumes_and_does_not_cache_the_prefix(config, directories) -> None:
    settings = {"optim__mixup": 0.2, "optim__cutmix": 1.0, "optim__epochs": 3, "stop__patience": 0}
    whole = train(config(name="whole", **settings), directories)
    assert "images are blended" in whole[0].compute["decisions"][0]
    resumed = interrupted_and_resumed(config(name="broken", **settings), directories)
    assert [e.train_loss for e in resumed[0].history] == [e.train_loss for e in whole[0].history]


def interrupted_and_resumed(settings, directories):
    class Interrupted(Exception):
        pass

    def interrupt(epoch) -> None:
        if epoch.epoch == 3:
            raise Interrupted

    with pytest.raises(Interrupted) as caught:
        train(settings, directories, TrainCallbacks(on_epoch=interrupt))
    directory = directories.runs / settings.name
    assert caught.value.__notes__ == [f"resume: inat-ft train --resume {directory}"]
    return train(load_config(directory / "config.yaml"), directories, resume=directory)


def test_l2_sp_keeps_the_backbone_near_its_start_and_the_head_near_zero(pretrained, directories) -> None:
    settings = {"strategy__name": "full", "optim__epochs": 3, "optim__optimizer": "sgd", "optim__lr": 0.05}
    free = pretrained(**settings)
    tied = pretrained(**settings, optim__regularize="l2-sp", optim__sp_backbone=2.0, optim__sp_head=2.0)
    begin, loose, near = start(free), weights(train(free, directories)), weights(train(tied, directories))
    assert distance(near, begin) < 0.7 * distance(loose, begin)
    assert near["fc.weight"].norm() < 0.9 * loose["fc.weight"].norm()


@pytest.mark.parametrize("average", ["ema", "swa", "wise-ft"])
def test_averages_work_with_strategies_and_resume(pretrained, directories, average: str) -> None:
    settings = {
        "strategy__name": "lp-ft", "strategy__head_epochs": 1, "optim__epochs": 4, "stop__patience": 0,
        "optim__average": average, "optim__swa_from": 0.25,
    }  # fmt: skip
    whole = train(pretrained(name="whole", **settings), directories)
    resumed = interrupted_and_resumed(pretrained(name="broken", **settings), directories)
    a, b = weights(whole), weights(resumed)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [e.val_loss for e in whole[0].history] == [e.val_loss for e in resumed[0].history]
    plain = train(pretrained(**{**settings, "optim__average": "none"}), directories)
    assert [e.train_loss for e in plain[0].history] == [
        e.train_loss for e in whole[0].history
    ]  # training itself does not change
    assert plain[0].history[-1].val_loss != whole[0].history[-1].val_loss


def test_wise_ft_interpolates_and_alpha_1_is_the_fine_tuned_network(pretrained, directories) -> None:
    settings = {"strategy__name": "partial", "optim__epochs": 1, "optim__average": "wise-ft"}
    begin = start(pretrained(**settings))
    runs = {alpha: weights(train(pretrained(**settings, optim__alpha=alpha), directories)) for alpha in (0.0, 0.5, 1.0)}
    for name in ("block5.conv.weight", "block5.bn.running_mean"):
        assert torch.equal(runs[0.0][name], begin[name])
        assert torch.allclose(runs[0.5][name], (begin[name] + runs[1.0][name]) / 2, atol=1e-6)
    assert torch.equal(runs[0.0]["fc.weight"], runs[1.0]["fc.weight"])  # the new head is not averaged
    with pytest.raises(UsageError, match="only the head is trained"):
        train(pretrained(optim__average="wise-ft"), directories)


@pytest.mark.parametrize(("epochs", "averaged"), [(1, 1), (2, 2), (3, 2), (5, 2), (10, 3), (20, 5)])
def test_swa_averages_the_last_quarter_but_at_least_two_epochs(epochs: int, averaged: int) -> None:
    swa = make_average(make_plan(All(), tiny_net(), epochs), OptimConfig(average="swa", epochs=epochs), {})
    assert [bool(swa.after_epoch(epoch)) for epoch in range(epochs)] == [False] * (epochs - averaged) + [
        True
    ] * averaged


def test_values_of_ema_and_swa() -> None:
    net = tiny_net()
    plan = make_plan(All(), net, 4)
    swa = make_average(plan, OptimConfig(average="swa", swa_from=0.5, epochs=4), {})
    ema = make_average(plan, OptimConfig(average="ema"), {})
    weight = net.head[1].weight
    for epoch in range(4):
        with torch.no_grad():
            weight.fill_(epoch)
        ema.after_step()
        mean = swa.after_epoch(epoch)
    assert float(mean["head.1.weight"][0, 0]) == 2.5 and int(mean["_chain.0.block1.1.num_batches_tracked"]) == 0
    assert 2 < float(ema.after_epoch(3)["head.1.weight"][0, 0]) < 3


def test_a_schedule_can_restart_with_each_phase(config, directories) -> None:
    settings = {
        "strategy__name": "lp-ft", "strategy__head_epochs": 2, "optim__epochs": 4, "optim__schedule": "cosine",
        "stop__patience": 0,
    }  # fmt: skip
    spanning, restarted = (
        train(config(**settings, optim__restart=restart), directories)[0] for restart in (False, True)
    )
    last = 1 - 1 / 5  # the last of the epoch's 5 steps
    assert [epoch.lr for epoch in spanning.history] == pytest.approx(
        [1e-3 * lr_factor(OptimConfig(schedule="cosine"), epoch + last, 4, 1 / 5) for epoch in range(4)]
    )
    assert (
        restarted.history[0].lr == restarted.history[2].lr
        and 0 < restarted.history[1].lr == restarted.history[3].lr < 1e-4
    )


class Greedy(nn.Module):
    """Run out of memory for more than a few images."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x


@pytest.mark.parametrize("most", [3, 1])
def test_a_batch_that_does_not_fit_into_memory_is_split_and_logged(config, directories, monkeypatch, most: int) -> None:
    from inat_ft.models import build

    def greedy(*args, **kwargs):
        model = plain(*args, **kwargs)
        layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Greedy(most), nn.Linear(8, 10))
        return dataclasses.replace(model, net=make_net("greedy", nn.Sequential(*layers), 3, 0.0))

    plain = build.build_model
    monkeypatch.setattr("inat_ft.setup.build_model", greedy)
    logged: list[str] = []
    settings = config(strategy__name="full", optim__batch_size=8)
    if most == 1:
        with pytest.raises(InatFtError, match="out of memory with micro-batches of two images"):
            train(settings, directories, TrainCallbacks(log=logged.append))
    else:
        record, _ = train(settings, directories, TrainCallbacks(log=logged.append))
        assert len(record.history) == 2
        assert any("each batch of 8 images is split into 4 parts" in line for line in logged)


class TestRangeTest:
    def test_it_suggests_a_learning_rate_and_creates_no_run(self, config, directories) -> None:
        settings = config(model__backbone="cnn", strategy__name="full", optim__optimizer="adam")
        found = find_lr(settings, directories)
        assert found.lrs == sorted(found.lrs) and len(found.lrs) == len(found.losses) == len(found.smooth)
        assert found.suggestion is not None and 1e-5 < found.suggestion < 1
        assert not directories.runs.exists()

    def test_steepest_descent(self) -> None:
        lrs = [10.0**power for power in range(-6, 1)]
        assert steepest_descent_lr(lrs, [2.0, 2.0, 1.9, 1.2, 0.6, 0.5, 9.0]) == pytest.approx(1e-3)
        assert steepest_descent_lr(lrs, [2.0, 2.0, 2.0, 2.0, 2.1, 3.0, 9.0]) is None

    def test_the_command_draws_a_figure(self, cli, manifest_file, tmp_path) -> None:
        arguments = [
            "--split",
            manifest_file,
            "--backbone",
            "cnn",
            "--set",
            "model.filters=16",
            "--image-size",
            32,
            "--batch-size",
            8,
        ]
        ran = cli("train", "--find-lr", *arguments, "--batch-size", 8, "--json")
        assert ran.code == 0, ran.err
        assert (tmp_path / ran.json["picture"]).read_bytes().startswith(b"\x89PNG")
        assert ran.json["suggestion"] in ran.json["lr"]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")
@pytest.mark.slow
def test_compiled_training_gives_the_same_loss() -> None:
    losses = []
    for compiled in (False, True):
        net = tiny_net()
        plan, step_config = make_plan(All(), net, 1), StepConfig(OptimConfig(epochs=1, lr=1e-2), compile=compiled)
        exact = Compute(torch.device("cpu"), "fp32", forced=True)
        losses.append(
            run_tasks(fit(SyntheticData(), plan, step_config, exact, TrainState(EarlyStopping(0))))
            .history[0]
            .train_loss
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_compiling_without_a_compiler_is_a_usage_error(cli, manifest_file, monkeypatch) -> None:
    arguments = ["--split", manifest_file, "--backbone", "cnn", "--image-size", 32, "--compile"]
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "")
    ran = cli("train", *arguments)
    assert ran.code == 2 and "C++ compiler" in ran.err
