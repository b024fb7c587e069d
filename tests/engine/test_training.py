import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from inat_ft import training
from inat_ft.config import OptimConfig
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.optimizer import lr_factor, make_optimizer
from inat_ft.engine.plan import TrainingPlan, make_plan
from inat_ft.errors import InatFtError, StorageError, UsageError
from inat_ft.models.net import make_net
from inat_ft.records import Epoch, RunRecord, atomic_write, read_record
from inat_ft.settings import load_config
from inat_ft.setup import SharedSetup
from inat_ft.strategies import Group, Strategy
from inat_ft.training import TrainCallbacks, TrainJob, prepare, train, train_together


def figures(record: RunRecord) -> list[dict[str, object]]:
    return [epoch.model_dump(exclude={"seconds"}) for epoch in record.history]


def assert_same(first: tuple[RunRecord, Path], second: tuple[RunRecord, Path]) -> None:
    assert figures(first[0]) == figures(second[0])
    a, b = (load_file(directory / "model.safetensors") for _, directory in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy__name": "head"},
        {"strategy__name": "partial", "model__backbone": "resnet18"},
        {"strategy__name": "partial", "strategy__unfreeze_from": "block3"},
        {"strategy__name": "head", "data__augment": "flip"},
        {"strategy__name": "partial", "data__augment": "flip"},
        {"strategy__name": "head", "data__balance": "sampler"},
        {"strategy__name": "partial", "model__backbone": "mobilenet_v2"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_cached_and_uncached_runs_agree_bit_for_bit(config, directories, settings: dict[str, object]) -> None:
    runs = [
        train(config(compute__cache=cache, **settings), directories) for cache in ("prefix", "none", "packed", "prefix")
    ]
    assert "prefix cache: on" in runs[0][0].compute["decisions"][0]
    for other in runs[1:]:
        assert_same(runs[0], other)


def test_the_seed_decides_the_result(config, directories) -> None:
    first, again, other = (train(config(strategy__name="full", seed=seed), directories) for seed in (1, 1, 2))
    assert_same(first, again)
    assert figures(first[0]) != figures(other[0])


def test_the_config_file_of_a_run_reproduces_it(config, directories) -> None:
    first = train(config(strategy__name="partial", data__augment="standard"), directories)
    again = load_config(first[1] / "config.yaml", [("name", "again")])
    assert_same(first, train(again, directories))


def test_a_named_run_can_be_repeated_and_its_paths_hide_the_home_folder(cli, manifest_file, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(manifest_file.parent))
    settings = ["--backbone", "cnn", "--image-size", "32", "--epochs", "1", "--precision", "fp32"]
    ran = cli("train", "--split", str(manifest_file), "--name", "mine", *settings)
    assert ran.code == 0, ran.err
    assert "split: ~/photos.csv" in Path("runs/mine/config.yaml").read_text()
    assert str(manifest_file.parent) not in Path("runs/mine/record.json").read_text()
    again = cli("train", "--config", "runs/mine/config.yaml")
    assert again.code == 0, again.err
    (other,) = (folder for folder in Path("runs").iterdir() if folder.name != "mine")
    assert_same(*((read_record(folder)[0], folder) for folder in (Path("runs/mine"), other)))
    assert cli("train", "--config", "runs/mine/config.yaml", "--name", "mine").code == 2


def test_training_the_head_does_not_change_the_backbone(config, directories) -> None:
    settings = config(optim__lr=0.1)
    before = {name: tensor.clone() for name, tensor in prepare(settings).plan.net.original_state_dict().items()}
    after = load_file(train(settings, directories)[1] / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_partial_training_changes_only_its_stages_and_their_statistics(config, directories) -> None:
    settings = config(
        model__backbone="resnet18", strategy__name="partial", strategy__unfreeze_from="layer4", compute__cache="none"
    )
    before = {name: tensor.clone() for name, tensor in prepare(settings).plan.net.original_state_dict().items()}
    after = load_file(train(settings, directories)[1] / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith(("layer4", "fc"))}


def test_a_network_learns(config, directories) -> None:
    record, _ = train(config(model__backbone="cnn", strategy__name="full", optim__epochs=6), directories)
    assert record.val_accuracy is not None and record.val_accuracy > 0.9


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_every_optimizer_and_schedule_trains(config, directories, optimizer: str, schedule: str) -> None:
    record, _ = train(
        config(
            optim__optimizer=optimizer,
            optim__schedule=schedule,
            optim__warmup_epochs=1,
            optim__weight_decay=0.01,
            optim__label_smoothing=0.1,
            optim__accumulate=2,
            data__balance="weights",
        ),
        directories,
    )
    assert record.history[0].lr == pytest.approx(1e-3)
    last = 0.5 * (1 + math.cos(math.pi * 4 / 5))  # of 5 steps
    assert record.history[1].lr == pytest.approx(1e-3 if schedule == "constant" else 1e-3 * last)


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_the_schedule_equals_that_of_torch_and_is_never_zero(steps: int) -> None:
    config = OptimConfig(epochs=10, schedule="cosine", warmup_epochs=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    rates = []
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * steps)
    for _ in range(8 * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    factors = [lr_factor(config, step / steps, 10, 1 / steps) for step in range(10 * steps)]
    assert factors[: 2 * steps] == pytest.approx([(step + 1) / (2 * steps) for step in range(2 * steps)])
    assert factors[2 * steps :] == pytest.approx(rates) and min(factors) > 0


def test_one_step_of_a_cosine_changes_the_weights(config, directories) -> None:
    settings = config(optim__schedule="cosine", optim__epochs=1, optim__batch_size=64)
    before = prepare(settings).plan.net.original_state_dict()["fc.weight"].clone()
    after = load_file(train(settings, directories)[1] / "model.safetensors")["fc.weight"]
    assert not torch.equal(before, after)


def epoch(val_accuracy: float | None, val_loss: float | None = 1.0) -> Epoch:
    return Epoch(epoch=1, val_accuracy=val_accuracy, val_loss=val_loss)


class TestEarlyStopping:
    def test_it_stops_after_patience_epochs_without_improvement(self) -> None:
        stop = EarlyStopping(patience=3)
        assert [stop.step(epoch(score)) for score in (0.5, 0.6, 0.6, 0.55, 0.6)] == [False, False, False, False, True]

    @pytest.mark.parametrize("monitor", ["val_accuracy", "val_loss"])
    def test_values_that_are_not_finite_are_worst_and_zero_patience_never_stops(self, monitor: str) -> None:
        assert EarlyStopping(patience=1, monitor=monitor).step(epoch(None, None))
        assert EarlyStopping(patience=1, monitor=monitor).step(Epoch.model_construct(epoch=1, **{monitor: math.nan}))
        never = EarlyStopping(patience=0, monitor=monitor)
        assert not any(never.step(epoch(0.0)) for _ in range(50))

    def test_with_min_delta_small_changes_and_ties_are_not_improvements(self) -> None:
        stop = EarlyStopping(patience=2, min_delta=0.1)
        assert [stop.step(epoch(score)) for score in (0.5, 0.55, 0.59)] == [False, False, True]
        stop = EarlyStopping(patience=2, min_delta=0.1)
        assert [stop.step(epoch(0.5, loss)) for loss in (3.0, 2.0, 1.0)] == [False, False, True]

    def test_ties_in_accuracy_are_broken_by_the_loss(self) -> None:
        stop = EarlyStopping(patience=2)
        assert not any(stop.step(epoch(0.5, loss)) for loss in (3.0, 2.0, 1.0, 0.5, 0.4))
        assert [stop.step(epoch(0.5, loss)) for loss in (0.4, 0.6)] == [False, True]

    def test_a_monitored_loss_must_fall_by_more_than_min_delta(self) -> None:
        stop = EarlyStopping(patience=2, min_delta=0.1, monitor="val_loss")
        assert [stop.step(epoch(score, loss)) for score, loss in ((0.1, 2.0), (0.9, 1.95), (1.0, 1.91))] == [
            False,
            False,
            True,
        ]

    @pytest.mark.parametrize("monitor", ["val_accuracy", "val_loss", "train_accuracy", "train_loss"])
    def test_the_monitored_metric_decides_the_best_epoch_also_after_a_resume(
        self, config, directories, monitor: str
    ) -> None:
        settings = {
            "optim__epochs": 5, "optim__lr": 0.03, "stop__monitor": monitor, "stop__patience": 0,
            "model__backbone": "cnn", "model__filters": 16, "strategy__name": "full",
        }  # fmt: skip
        record, directory = train(config(**settings, name="whole"), directories)
        sign = -1 if monitor.endswith("loss") else 1
        scores = [(sign * getattr(each, monitor), -each.val_loss) for each in record.history]
        best = scores.index(max(scores))
        assert record.best_epoch == best + 1 and record.val_accuracy == record.history[best].val_accuracy
        until_best, short = train(config(**(settings | {"optim__epochs": best + 1}), name="short"), directories)
        a, b = (load_file(folder / "model.safetensors") for folder in (directory, short))
        assert figures(until_best) == figures(record)[: best + 1] and all(torch.equal(a[name], b[name]) for name in a)

        def interrupt(epoch) -> None:
            if epoch.epoch == 4:
                raise Interrupted

        with pytest.raises(Interrupted):
            train(config(**settings, name="broken"), directories, TrainCallbacks(on_epoch=interrupt))
        resumed = train(
            load_config(directories.runs / "broken" / "config.yaml"), directories, resume=directories.runs / "broken"
        )
        assert_same((record, directory), resumed)
        assert resumed[0].best_epoch == record.best_epoch and resumed[0].optimizer_steps == record.optimizer_steps

    def test_training_stops_and_keeps_the_first_best_epoch(self, config, directories) -> None:
        settings = config(
            optim__epochs=40, optim__lr=0.05, stop__patience=2, model__backbone="cnn", strategy__name="full"
        )
        record, directory = train(settings, directories)
        accuracies = [epoch.val_accuracy for epoch in record.history]
        scores = [(epoch.val_accuracy, -epoch.val_loss) for epoch in record.history]
        best = scores.index(max(scores)) + 1
        assert record.stopped_early and len(accuracies) == best + 2 and record.best_epoch == best
        assert record.val_accuracy == max(accuracies)
        until_best, _ = train(
            load_config(directory / "config.yaml", [("optim.epochs", best), ("name", "short")]), directories
        )
        kept = load_file(directory / "model.safetensors")
        short = load_file(directories.runs / "short" / "model.safetensors")
        assert figures(until_best) == figures(record)[:best]
        assert all(torch.equal(kept[name], short[name]) for name in kept)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "settings", [{"strategy__name": "head"}, {"strategy__name": "full", "data__augment": "standard"}]
)
@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_resumed_run_gives_the_same_numbers(config, directories, settings, stopped_after: int) -> None:
    whole = train(config(optim__epochs=3, stop__patience=0, name="whole", **settings), directories)

    def interrupt(epoch) -> None:
        if epoch.epoch == stopped_after + 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(
            config(optim__epochs=3, stop__patience=0, name="broken", **settings),
            directories,
            TrainCallbacks(on_epoch=interrupt),
        )
    directory = directories.runs / "broken"
    assert not (directory / "record.json").exists()
    resumed = train(load_config(directory / "config.yaml"), directories, resume=directory)
    assert_same(whole, resumed)
    assert (whole[1] / "predictions-val.csv").read_text() == (directory / "predictions-val.csv").read_text()


@pytest.mark.slow
def test_a_killed_process_can_be_resumed(cli, manifest_file) -> None:
    arguments = ["train", "--split", manifest_file, "--backbone", "resnet18", "--weights", "none", "--mode", "full"]
    arguments += ["--image-size", 32, "--epochs", 4, "--patience", 0, "--precision", "fp32", "--batch-size", 8]
    command = [sys.executable, "-m", "inat_ft", *map(str, arguments), "--name", "killed"]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    checkpoint = Path("runs/killed/resume.pt")
    deadline = time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert checkpoint.exists() and not Path("runs/killed/record.json").exists()
    resumed = cli("train", "--resume", "runs/killed", "--json")
    assert resumed.code == 0, resumed.err
    assert cli(*arguments, "--name", "whole").code == 0
    histories = [json.loads(Path(f"runs/{name}/record.json").read_text())["history"] for name in ("killed", "whole")]
    for epochs in histories:
        for epoch in epochs:
            del epoch["seconds"]
    assert histories[0] == histories[1]


def test_what_a_process_left_that_was_killed_after_the_record_is_removed(config, directories) -> None:
    record, run = train(config(), directories)
    left = run / ".README.md.12345678.tmp"
    left.write_text("half")
    assert train(config(), directories, resume=run)[0] == record
    assert not left.exists()


def test_a_run_whose_files_cannot_be_written_fails_alone(config, directories, monkeypatch) -> None:
    """The files of a shorter run are written while the others train."""
    names, save = {"short": 1, "long": 3, "full-disk": 1}, training.save_model
    jobs = [TrainJob(config(name=name, optim__epochs=epochs), directories) for name, epochs in names.items()]

    def save_one(file: Path, *settings: object) -> None:
        if file.parent.name == "full-disk":
            raise StorageError(f"cannot write {file}: No space left on device")
        save(file, *settings)

    monkeypatch.setattr(training, "save_model", save_one)
    short, long, failed = train_together(jobs, SharedSetup())
    monkeypatch.undo()
    assert isinstance(failed, StorageError)
    assert not (directories.runs / "full-disk/record.json").exists()
    for outcome, job in ((short, jobs[0]), (long, jobs[1])):
        alone = train(job.config.model_copy(update={"name": f"{job.config.name}-alone"}), directories)
        assert_same(outcome, alone)
    finished = train_together(
        [TrainJob(jobs[2].config, directories, resume=directories.runs / "full-disk")], SharedSetup()
    )
    assert_same(finished[0], short)


def test_a_finished_run_is_returned(config, directories) -> None:
    record, directory = train(config(), directories)
    again, _ = train(config(), directories, resume=directory)
    assert again == record


@pytest.mark.parametrize("left", [b"", b"PK\3\4 not whole"])
def test_a_damaged_checkpoint_is_refused(config, directories, left: bytes) -> None:
    seen = []

    def interrupt(epoch) -> None:
        seen.append(epoch)
        if len(seen) == 2:
            raise Interrupted

    with pytest.raises(Interrupted) as first:
        train(config(name="a"), directories, TrainCallbacks(on_epoch=interrupt))
    assert first.value.__notes__ == [f"resume: inat-ft train --resume {directories.runs / 'a'}"]
    (directories.runs / "a" / "resume.pt").write_bytes(left)
    with pytest.raises(InatFtError, match=r"cannot read the checkpoint .*: .") as caught:
        train(config(name="a"), directories, resume=directories.runs / "a")
    assert caught.value.hint == "start a new run with another --name" and not hasattr(caught.value, "__notes__")


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(config, directories) -> None:
    def interrupt(epoch) -> None:
        if epoch.epoch == 3:
            raise Interrupted

    settings = {"optim__epochs": 4, "stop__patience": 0, "strategy__name": "full"}
    whole = train(config(name="whole", **settings), directories)
    with pytest.raises(Interrupted):
        train(config(name="a", **settings), directories, TrainCallbacks(on_epoch=interrupt))
    run, lines = directories.runs / "a", []
    newest, before = run / "resume.pt", run / "resume.previous.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight, which torch.load does not notice
    newest.write_bytes(content)
    left = run / ".resume.pt.0a1b2c3d.tmp"
    left.write_bytes(b"of a killed process")
    assert_same(train(config(name="a", **settings), directories, TrainCallbacks(log=lines.append), run), whole)
    (line,) = (line for line in lines if "checkpoint" in line)
    assert "the checksum of" in line and line.endswith("training resumes from the checkpoint before it, epoch 1")
    assert newest.exists() and not before.exists() and not left.exists()
    metrics = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["epoch"] for row in metrics] == [1, 2, 3, 4]


@pytest.mark.parametrize("kept", ["previous", "neither"])
def test_a_process_may_be_killed_between_the_two_checkpoints(config, directories, kept: str) -> None:
    def interrupt(epoch) -> None:
        if epoch.epoch == 3:
            raise Interrupted

    settings = {"optim__epochs": 3, "stop__patience": 0}
    whole = train(config(name="whole", **settings), directories)
    with pytest.raises(Interrupted):
        train(config(name="a", **settings), directories, TrainCallbacks(on_epoch=interrupt))
    run = directories.runs / "a"
    (run / "resume.pt").unlink()
    if kept == "neither":
        (run / "resume.previous.pt").unlink()
    assert_same(train(config(name="a", **settings), directories, resume=run), whole)


def test_a_checkpoint_of_other_settings_is_refused(config, directories) -> None:
    def interrupt(epoch) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(config(name="a"), directories, TrainCallbacks(on_epoch=interrupt))
    train_first_epoch = TrainCallbacks(
        on_epoch=lambda epoch: (_ for _ in ()).throw(Interrupted) if epoch.epoch == 2 else None
    )
    with pytest.raises(Interrupted):
        train(config(), directories, train_first_epoch, resume=directories.runs / "a")
    with pytest.raises(InatFtError, match="other settings"):
        train(config(optim__lr=0.5), directories, resume=directories.runs / "a")


def test_a_name_is_not_used_twice(config, directories) -> None:
    train(config(name="once"), directories)
    with pytest.raises(UsageError, match="already exists"):
        train(config(name="once"), directories)
    names = [train(config(), directories)[1].name for _ in range(2)]
    assert names == ["cnn-head-1", "cnn-head-2"]


def test_a_diverged_loss_is_an_error_with_a_hint(config, directories) -> None:
    with pytest.raises(InatFtError, match="training has diverged") as caught:
        train(config(strategy__name="full", optim__lr=100.0, optim__optimizer="sgd", optim__epochs=20), directories)
    assert "--lr" in caught.value.hint


def test_on_epoch_can_stop_training(config, directories) -> None:
    record, _ = train(config(optim__epochs=5), directories, TrainCallbacks(on_epoch=lambda epoch: epoch.epoch == 2))
    assert len(record.history) == 2 and record.best_epoch in (1, 2)


def test_the_optimizer_holds_trainable_parameters_and_does_not_decay_biases(config) -> None:
    setup = prepare(config(model__backbone="resnet18", strategy__name="partial", strategy__unfreeze_from="layer4"))
    optimizer = make_optimizer(setup.plan.epochs[0], OptimConfig(weight_decay=0.1))
    held = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    learning = {
        id(p): p
        for name, p in setup.plan.net.named_parameters()
        if setup.plan.net.original_name(name).startswith(("layer4", "fc"))
    }
    assert held.keys() == learning.keys()
    assert all((held[key] > 0) == (parameter.ndim > 1) for key, parameter in learning.items())


class HeadThenAll(Strategy):
    def groups(self, net, epoch):
        return [Group(net.head.parameters())] if epoch < 2 else [Group(net.parameters(), lr_scale=0.1)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_a_prefix_thaws_in_the_first_epoch_with_a_shorter_one(prefixes: list[int]) -> None:
    plan = TrainingPlan(nn.Module(), (None,) * len(prefixes))  # only the prefixes are read
    vars(plan)["_prefixes"] = prefixes
    for epoch, prefix in enumerate(prefixes):
        following = [number for number, other in enumerate(prefixes) if number > epoch and other < prefix]
        assert plan.epochs_until_thaw(epoch) == min(following, default=len(prefixes)) - epoch


def test_a_new_phase_keeps_the_optimizer_state() -> None:
    from torchvision.models import resnet18

    net = make_net("resnet18", resnet18(), 3, 0.0)
    plan = make_plan(HeadThenAll(), net, 4)
    assert [plan.frozen_prefix(epoch) for epoch in range(4)] == [6, 6, 0, 0]
    assert [plan.starts_phase(epoch) for epoch in range(4)] == [False, False, True, False]
    assert plan.epochs_until_thaw(0) == 2
    first = make_optimizer(plan.epochs[0], OptimConfig())
    net.set_trainable(plan.epochs[0].scales)
    net.eval()(torch.rand(2, 3, 32, 32)).sum().backward()
    first.step()
    second = make_optimizer(plan.epochs[2], OptimConfig(), first)
    weight = net.head[1].weight
    assert torch.equal(second.state[weight]["exp_avg"], first.state[weight]["exp_avg"])
    assert len([p for group in second.param_groups for p in group["params"]]) == len(list(net.parameters()))


def test_a_record_describes_the_environment_without_personal_data(config, directories) -> None:
    record, directory = train(config(), directories)
    text = (directory / "record.json").read_text()
    assert record.environment["torch"] == torch.__version__ and record.split.fingerprint and record.seed == 0
    assert record.parameters.trained == 3 * 128 + 3
    assert record.seconds["total"] > 0 and record.images_per_s > 0 and record.peak_memory_mib > 0
    assert os.uname().nodename not in text
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]


def test_a_full_disk_is_reported_and_leaves_no_partial_file(manifest_file) -> None:
    arguments = [
        "train",
        "--split",
        manifest_file,
        "--backbone",
        "cnn",
        "--set",
        "model.filters=16",
        "--image-size",
        "32",
    ]
    command = [
        sys.executable,
        "-m",
        "inat_ft",
        *map(str, arguments),
        "--cache",
        "none",
        "--epochs",
        "1",
        "--name",
        "full",
    ]
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2**18, 2**18))  # acts like a full disk
    ran = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert ran.returncode == 1 and "cannot write runs/full/resume.pt: File too large" in ran.stderr, ran.stderr
    assert "free some space" in ran.stderr and "fault of inat-ft" not in ran.stderr
    assert not Path("runs/full/resume.pt").exists() and not list(Path("runs/full").glob(".*.tmp"))


def test_a_full_disk_is_recognized_in_errors_of_libraries(tmp_path) -> None:
    with pytest.raises(InatFtError, match="No space left"), atomic_write(tmp_path / "model"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="something else"), atomic_write(tmp_path / "model"):
        raise RuntimeError("something else")
    assert list(tmp_path.iterdir()) == []
