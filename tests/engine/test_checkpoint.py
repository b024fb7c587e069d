"""Checkpoints: what is saved, what is restored, and what is refused."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inat_ft.config import ModelConfig, OptimConfig
from inat_ft.engine import checkpoint
from inat_ft.engine.checkpoint import CheckpointError, CheckpointWriter, load_checkpoint, previous_checkpoint
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import Trainable, TrainingPlan, make_plan
from inat_ft.errors import InatFtError
from inat_ft.models.build import build_net
from inat_ft.records import Epoch
from inat_ft.strategies.stages import Head
from tests.fake_device import fake_device

CONFIG = OptimConfig(optimizer="sgd", epochs=3)
SHAPE = (4, 3)


def make_plan_of_head(seed: int = 0, device: torch.device | str = "cpu") -> TrainingPlan:
    model = ModelConfig.model_validate({"backbone": "cnn", "weights": "none", "filters": 16})
    plan = make_plan(Head(), build_net(model, 3, 32, seed=seed).to(device), 3)
    plan.net.set_trainable(plan.epochs[0].scales)
    return plan


def trained_state(plan: TrainingPlan, epochs: int = 2) -> TrainState:
    state = TrainState(EarlyStopping(3), epoch=epochs, steps=7, best_epoch=1, stop_reason="asked")
    state.optimizer = make_optimizer(plan.epochs[0], CONFIG)
    for parameter in plan.trainable_state_names():
        dict(plan.net.named_parameters())[parameter].grad = torch.ones_like(
            dict(plan.net.named_parameters())[parameter]
        )
    state.optimizer.step()
    tensors = plan.net.state_dict()
    state.best_weights = {name: tensors[name].clone() + 1 for name in plan.trainable_state_names()}
    state.average_state = {"mean": torch.full((2,), 5.0)}
    state.scaler = {"scale": 4.0}
    state.best_logits = torch.arange(12.0).reshape(SHAPE)
    for number in range(1, epochs + 1):
        state.history.append(
            Epoch(epoch=number, train_loss=1 / 3, val_loss=0.7, val_accuracy=0.5, lr=1e-3, seconds=0.1)
        )
        state.early_stopping.step(state.history[-1])
    return state


@pytest.fixture
def plan() -> TrainingPlan:
    return make_plan_of_head()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "resume.pt"


def save(file: Path, plan: TrainingPlan, state: TrainState) -> None:
    with CheckpointWriter() as writer:
        writer.save(file, state, plan, "id")


def load(file: Path, plan: TrainingPlan, identity: str = "id") -> tuple[TrainState, list[str]]:
    state, logged = TrainState(EarlyStopping(3)), list[str]()
    load_checkpoint(file, state, plan, CONFIG, identity, SHAPE, logged.append)
    return state, logged


def test_everything_is_restored(plan, file) -> None:
    state = trained_state(plan)
    save(file, plan, state)
    other = make_plan_of_head(seed=1)
    other.net.requires_grad_(True)
    loaded, logged = load(file, other)
    assert logged == []
    plain = ("epoch", "steps", "history", "early_stopping", "best_epoch", "scaler", "stop_reason")
    assert [getattr(loaded, name) for name in plain] == [getattr(state, name) for name in plain]
    for name in ("best_weights", "average_state"):
        ours, theirs = getattr(loaded, name), getattr(state, name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(loaded.best_logits, state.best_logits)
    for name in plan.trainable_state_names():
        assert torch.equal(other.net.state_dict()[name], plan.net.state_dict()[name])
    ours, theirs = loaded.optimizer.state_dict(), state.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"] and len(ours["state"]) == len(theirs["state"]) > 0
    buffers = [value["momentum_buffer"] for value in ours["state"].values()]
    assert all(torch.equal(a, b["momentum_buffer"]) for a, b in zip(buffers, theirs["state"].values(), strict=True))
    trainable = [name for name, parameter in other.net.named_parameters() if parameter.requires_grad]
    assert trainable and all(name.startswith("head") for name in trainable)


def test_without_a_checkpoint_nothing_changes(plan, file) -> None:
    loaded, logged = load(file, plan)
    assert (loaded.epoch, loaded.optimizer, loaded.history, logged) == (0, None, [], [])


def test_the_raw_weights_are_saved_while_the_network_holds_averages(plan, file) -> None:
    state = trained_state(plan)
    state.raw_weights = {name: torch.full_like(tensor, 9.0) for name, tensor in state.best_weights.items()}
    save(file, plan, state)
    other = make_plan_of_head()
    load(file, other)
    assert all(bool((other.net.state_dict()[name] == 9).all()) for name in state.raw_weights)


def test_the_saved_tensors_are_copies(plan, file, monkeypatch) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(checkpoint, "_write", lambda path, content: kept.append(content))
    state = trained_state(plan)
    save(file, plan, state)
    for name, tensor in kept[0]["best"].items():
        assert not tensor.requires_grad and tensor.data_ptr() != state.best_weights[name].data_ptr()
    assert all(not tensor.requires_grad for tensor in kept[0]["weights"].values())
    nested = [torch.ones(2), (torch.zeros(1), "text")]
    copied = checkpoint._copy_to_cpu(nested)
    assert isinstance(copied, list) and isinstance(copied[1], tuple) and copied[1][1] == "text"
    assert torch.equal(copied[0], nested[0]) and copied[0].data_ptr() != nested[0].data_ptr()


def test_an_untrained_state_is_not_saved(plan, file) -> None:
    state = trained_state(plan)
    state.optimizer = None
    with pytest.raises(ValueError, match="no epoch has been trained"), CheckpointWriter() as writer:
        writer.save(file, state, plan, "id")
    assert not file.exists()


def test_a_failed_write_is_raised_by_the_next_save_but_hides_no_other_error(plan, tmp_path) -> None:
    (tmp_path / "file").touch()
    bad = tmp_path / "file" / "resume.pt"
    with CheckpointWriter() as writer:
        writer.save(bad, trained_state(plan), plan, "id")
        with pytest.raises(Exception, match="resume"):
            writer.save(tmp_path / "resume.pt", trained_state(plan), plan, "id")
        writer._last = None
    with pytest.raises(KeyError, match="other"), CheckpointWriter() as writer:
        writer.save(bad, trained_state(plan), plan, "id")
        raise KeyError("other")


def test_leaving_waits_for_the_last_checkpoint_and_raises_its_failure(plan, file, monkeypatch) -> None:
    write = checkpoint._write

    def slow(path: Path, content: dict[str, Any]) -> None:
        time.sleep(0.1)
        write(path, content)

    monkeypatch.setattr(checkpoint, "_write", slow)
    with pytest.raises(KeyboardInterrupt), CheckpointWriter() as writer:
        writer.save(file, trained_state(plan), plan, "id")
        raise KeyboardInterrupt
    assert load(file, plan)[0].epoch == 2
    with pytest.raises(InatFtError, match="resume"), CheckpointWriter() as writer:
        writer.save(file / "resume.pt", trained_state(plan), plan, "id")


def test_copies_from_a_gpu_are_complete_before_they_are_written(file, monkeypatch) -> None:
    written: list[int] = []
    with fake_device("cuda") as gpu:
        plan = make_plan_of_head(device=gpu.device)

        def write(path: Path, content: dict[str, Any]) -> None:
            written.append(sum(wait.startswith("synchronize") for wait in gpu.waits))
            assert content["weights"] and all(type(tensor) is torch.Tensor for tensor in content["weights"].values())

        monkeypatch.setattr(checkpoint, "_write", write)
        save(file, plan, trained_state(plan))
    assert written == [1]


def test_copies_from_an_apple_gpu_wait_for_the_values(file) -> None:
    with fake_device("mps") as gpu:
        plan = make_plan_of_head(device=gpu.device)
        save(file, plan, trained_state(plan))
    assert load(file, make_plan_of_head())[0].epoch == 2


def test_the_one_before_is_kept_and_used_when_the_newest_is_damaged(plan, file) -> None:
    save(file, plan, trained_state(plan, 1))
    assert not previous_checkpoint(file).exists()
    save(file, plan, trained_state(plan, 2))
    assert sorted(each.name for each in file.parent.iterdir()) == ["resume.previous.pt", "resume.pt"]
    assert load(file, plan)[0].epoch == 2
    whole = file.read_bytes()
    at = whole.index(b"\0\0\xa0@\0\0\xa0@")  # the averages, 5.0 twice
    file.write_bytes(whole[:at] + b"\1" + whole[at + 1 :])
    loaded, logged = load(file, plan)
    assert loaded.epoch == 1 and len(logged) == 1
    assert "the checksum of" in logged[0] and logged[0].endswith(
        "training resumes from the checkpoint before it, epoch 1"
    )
    file.unlink()
    assert load(file, plan)[0].epoch == 1 and load(file, plan)[1] == []
    file.write_bytes(b"")
    shutil.copy(file, previous_checkpoint(file))
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*resume\.pt: File is not a zip file"):
        load(file, plan)


def test_other_archives_are_refused(plan, file) -> None:
    torch.save({"version": 2, "epoch": 1}, file)
    with pytest.raises(CheckpointError, match="not a checkpoint of inat-ft"):
        load(file, plan)
    torch.save(nn.Linear(1, 1), file)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load(file, plan)
    torch.save({"version": 2, "identity": "id", "epoch": 1}, file)
    with pytest.raises(CheckpointError, match="is damaged: steps: Field required"):
        load(file, plan)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_code_in_a_checkpoint_is_not_executed(plan, file) -> None:
    torch.save({"version": 2, "identity": _Code(), "epoch": 1}, file)
    with pytest.raises(CheckpointError, match="cannot read the checkpoint"):
        load(file, plan)
    assert not Path("executed").exists()


def test_the_optimizer_has_the_parameters_of_the_last_epoch(file) -> None:
    """Gradual unfreezing adds a stage in the last epoch."""
    plan = make_plan_of_head()
    last = plan.net.stages_from(plan.net.default_stage)[-1].parameters()
    plan = replace(plan, epochs=(*plan.epochs[:2], Trainable(plan.epochs[0].scales | dict.fromkeys(last, 0.5))))
    state = trained_state(plan, 3)
    state.optimizer = make_optimizer(plan.epochs[2], CONFIG)
    save(file, plan, state)
    loaded, _ = load(file, plan)
    trained = {id(each) for group in loaded.optimizer.param_groups for each in group["params"]}
    assert trained == set(map(id, plan.epochs[2].scales)) > set(map(id, plan.epochs[1].scales))


def test_a_checkpoint_of_another_run_or_version_is_refused(plan, file) -> None:
    save(file, plan, trained_state(plan))
    with pytest.raises(CheckpointError, match="saved with other settings, images or weights") as caught:
        load(file, plan, "other")
    assert "--name" in caught.value.hint
    content = torch.load(file, weights_only=True)
    torch.save({**content, "version": 3}, file)
    with pytest.raises(CheckpointError, match="saved with other settings"):
        load(file, plan)


DAMAGE: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 0}, "epoch: Input should be greater than or equal to 1"),
    ({"epoch": 1}, "epoch 1 with 2 results, the best of 1"),
    ({"epoch": 3}, "epoch 3 with 2 results"),
    ({"steps": -1}, "steps: "),
    ({"steps": "7"}, "steps: "),
    ({"best_epoch": 0}, "best_epoch: "),
    ({"best_epoch": 3}, "epoch 2 with 2 results, the best of 3"),
    ({"stop": {"best": (0.5, 1.0), "waited": -1}}, "stop.waited: "),
    ({"stop": {"best": (0.5,), "waited": 0}}, "stop.best"),
    ({"history": "not JSON\n"}, "history: "),
    ({"history": ""}, "epoch 2 with 0 results"),
    ({"best_logits": torch.zeros(4, 2)}, r"logits of the shape \(4, 2\) instead of \(4, 3\)"),
    ({"weights": {}}, "missing or unknown tensors: "),
    ({"best": {}}, "missing or unknown tensors: "),
    ({"optimizer": {}}, "KeyError: "),
]


@pytest.mark.parametrize(("change", "says"), DAMAGE, ids=[says[:40] for _, says in DAMAGE])
def test_a_part_that_does_not_fit_is_named(plan, file, change: dict[str, Any], says: str) -> None:
    save(file, plan, trained_state(plan))
    torch.save({**torch.load(file, weights_only=True), **change}, file)
    with pytest.raises(CheckpointError, match=f"the checkpoint .* is damaged: .*{says}") as caught:
        load(file, plan)
    assert "--name" in caught.value.hint


def test_more_epochs_than_the_run_has_are_refused(plan, file) -> None:
    save(file, plan, trained_state(plan, 3))
    assert load(file, plan)[0].epoch == 3
    with pytest.raises(CheckpointError, match="epoch 3 with 3 results"):
        load(file, replace(plan, epochs=plan.epochs[:2]))


def test_parts_that_may_be_absent_and_the_history_of_earlier_versions(plan, file) -> None:
    """Version 0.1.0 has a history of dictionaries and no scaler."""
    state = trained_state(plan)
    save(file, plan, state)
    content = torch.load(file, weights_only=True)
    del content["scaler"]
    content["history"] = [epoch.model_dump() for epoch in state.history]
    torch.save(content, file)
    loaded, _ = load(file, plan)
    assert loaded.scaler == {} and loaded.history == state.history
