"""One optimizer step: fp16 with a scaled loss, l2-sp, a compiler that fails, and checkpoints in the background."""

import threading

import pytest
import torch
from torch import Tensor, nn

from inat_ft.config import ModelConfig, OptimConfig
from inat_ft.data.batches import Batches, ResidentRows
from inat_ft.engine import checkpoint
from inat_ft.engine.checkpoint import CheckpointWriter, load_checkpoint
from inat_ft.engine.device import Compute, reproducible
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState
from inat_ft.engine.forward import Forward, StepConfig
from inat_ft.engine.loops import Batch, step, update_bn
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import InatFtError
from inat_ft.models.build import build_net
from inat_ft.records import Epoch
from inat_ft.strategies.stages import Full
from inat_ft.training import TrainCallbacks, train

CPU = Compute(torch.device("cpu"), "fp32")
CONFIG = OptimConfig(optimizer="sgd", epochs=2, clip_norm=0, weight_decay=0)


@pytest.fixture
def plan() -> TrainingPlan:
    net = build_net(
        ModelConfig.model_validate({"backbone": "cnn", "weights": "none", "dropout": 0.0, "filters": 16}), 3, 32, seed=0
    )
    plan = make_plan(Full(), net, 2)
    net.set_trainable(plan.epochs[0].scales)
    net.train()
    return plan


def one_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(8) % 3
    return Batch(8, torch.randn(8, 3, 32, 32, generator=generator), labels, labels)


def forward_of(plan: TrainingPlan, step_config: StepConfig, compute: Compute = CPU) -> Forward:
    data = Batches(ResidentRows(one_batch().inputs), one_batch().labels, 4, lambda rows, numbers: rows)
    return Forward(plan.net, data, 0, compute, step_config.tail(plan.net, 0, compute))


def weights(plan: TrainingPlan) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in plan.net.parameters()]


def test_fp16_scales_the_loss_and_skips_steps_with_gradients_that_overflow(plan, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # too large for fp16
    step_config = StepConfig(CONFIG, scaler=scaler)
    forward = forward_of(plan, step_config, Compute(torch.device("cpu"), "fp16"))
    optimizer = make_optimizer(plan.epochs[0], CONFIG)
    start, scales = weights(plan), [scaler.get_scale()]
    with reproducible(deterministic=True):  # which fills uninitialized memory with NaN
        for seed in range(40):
            step(forward, step_config, optimizer, one_batch(seed))
            scales.append(scaler.get_scale())
            if scales[-1] == scales[-2]:
                break
            assert all(map(torch.equal, start, weights(plan)))
    assert scales[-1] < 2.0**30 and not all(map(torch.equal, start, weights(plan)))
    assert all(parameter.isfinite().all() for parameter in plan.net.parameters())


def test_gradients_are_clipped_after_the_loss_is_unscaled(plan) -> None:
    changes = []
    for scale in (1.0, 1024.0):
        clipped = CONFIG.model_copy(update={"clip_norm": 0.01, "lr": 1.0})
        step_config = StepConfig(clipped, scaler=torch.amp.GradScaler("cpu", init_scale=scale))
        optimizer = torch.optim.SGD([{"params": list(plan.net.parameters()), "lr": 1.0}])
        before = weights(plan)
        step(forward_of(plan, step_config), step_config, optimizer, one_batch())
        after = weights(plan)
        changes.append(torch.cat([(a - b).flatten() for a, b in zip(after, before, strict=True)]))
        with torch.no_grad():
            for parameter, old in zip(plan.net.parameters(), before, strict=True):
                parameter.copy_(old)
    assert changes[0].norm() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(changes[1], changes[0], rtol=1e-3, atol=1e-5)


def test_l2_sp_adds_the_distance_from_the_start_to_the_gradient(plan) -> None:
    first = next(plan.net.parameters())
    bias = list(plan.net.parameters())[-1]
    gradients = []
    for start in ({}, {0.5: {first: torch.zeros_like(first)}, 0.1: {bias: torch.ones_like(bias)}}):
        step_config, kept = StepConfig(CONFIG, start=start), []
        optimizer = torch.optim.SGD(plan.net.parameters(), lr=0.0)
        optimizer.register_step_pre_hook(lambda o, *_, kept=kept: kept.extend(p.grad.clone() for p in (first, bias)))
        step(forward_of(plan, step_config), step_config, optimizer, one_batch())
        gradients.append(kept)
    torch.testing.assert_close(gradients[1][0], gradients[0][0] + 0.5 * first.detach())
    torch.testing.assert_close(gradients[1][1], gradients[0][1] + 0.1 * (bias.detach() - 1))


def test_a_compiler_that_fails_gives_a_warning_and_uncompiled_layers(config, directories, monkeypatch) -> None:
    def fail(graph: object, example: object) -> None:
        raise RuntimeError("no such instruction")

    original, logged = torch.compile, []
    monkeypatch.setattr("inat_ft.engine.forward.has_compiler", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda run: original(run, backend=fail))
    settings = {"strategy__name": "full", "model__backbone": "cnn", "model__filters": 16}
    failed, _ = train(config(compute__compile=True, **settings), directories, TrainCallbacks(log=logged.append))
    plain, _ = train(config(**settings), directories)
    assert [line for line in logged if "compile" in line] == [
        "warning: torch.compile failed, so the trainable layers run uncompiled"
    ]
    assert [epoch.train_loss for epoch in failed.history] == [epoch.train_loss for epoch in plain.history]


def test_the_updated_statistics_are_the_mean_over_all_batches(plan) -> None:
    plan.net.eval()
    first = next(module for module in plan.net.modules() if isinstance(module, nn.BatchNorm2d))
    convolution = next(module for module in plan.net.modules() if isinstance(module, nn.Conv2d))
    outputs = [convolution(images) for images in one_batch().inputs.split(4)]
    update_bn(forward_of(plan, StepConfig(CONFIG)))
    torch.testing.assert_close(
        first.running_mean, torch.stack([output.mean((0, 2, 3)) for output in outputs]).mean(0), rtol=1e-4, atol=1e-5
    )
    assert first.momentum == 0.1 and first.num_batches_tracked == 2


def trained_state(plan: TrainingPlan) -> TrainState:
    best = {name: plan.net.state_dict()[name].clone() for name in plan.trainable_state_names()}
    state = TrainState(EarlyStopping(0), epoch=1, best_epoch=1, best_weights=best, best_logits=torch.zeros(1, 3))
    state.history = [Epoch(epoch=1, train_loss=1.0, val_loss=1.0, val_accuracy=0.5)]
    state.early_stopping.step(state.history[0])
    state.optimizer = make_optimizer(plan.epochs[0], CONFIG)
    return state


def test_a_checkpoint_holds_the_weights_at_the_time_of_the_call(plan, tmp_path, monkeypatch) -> None:
    write, may_write = checkpoint._write, threading.Event()
    monkeypatch.setattr(checkpoint, "_write", lambda *given: (may_write.wait(30), write(*given)))
    state, wanted = trained_state(plan), weights(plan)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0).state_dict()
    with CheckpointWriter() as writer:
        writer.save(tmp_path / "resume.pt", state, plan, "a")
        assert not (tmp_path / "resume.pt").exists()  # training goes on
        with torch.no_grad():
            for parameter in plan.net.parameters():
                parameter.zero_()
        may_write.set()
    loaded = TrainState(EarlyStopping(0))
    load_checkpoint(tmp_path / "resume.pt", loaded, plan, CONFIG, "a", tuple(state.best_logits.shape))
    assert all(map(torch.equal, wanted, weights(plan)))
    assert loaded.scaler["scale"] == 8.0


def test_a_checkpoint_that_cannot_be_written_is_reported(plan, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InatFtError, match="resume"), CheckpointWriter() as writer:
        writer.save(tmp_path / "file" / "resume.pt", trained_state(plan), plan, "a")
