"""Distributed training: real processes, started by torchrun, on the CPU."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import allclose, nn
from torchvision.models import resnet18

from inat_ft.engine.distributed import BatchSlice, ProcessGroup, convert_sync_layers
from inat_ft.models.net import make_net

pytestmark = pytest.mark.slow

OPTIONS = (
    "--backbone resnet18 --weights none --image-size 32 --batch-size 12 --precision fp32 --optimizer sgd --lr 1e-3"
)


TINY = ["--backbone", "cnn", "--set", "model.filters=16"]  # has dropout


def torchrun(processes: int, manifest: Path, *arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "inat_ft", "train", "--split", str(manifest), *OPTIONS.split(), *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def record(name: str) -> dict:
    return json.loads(Path(f"runs/{name}/record.json").read_text())


@pytest.mark.parametrize(
    ("mode", "more"),
    [
        ("head", ["--cache", "prefix"]),
        ("full", []),
        ("full", ["--backbone", "cnn", "--set", "model.filters=16"]),  # has dropout
        ("full", ["--backbone", "efficientnet_b0"]),  # stochastic depth
        ("full", ["--average", "swa", "--batch-size", "16", "--epochs", "2"]),  # batches of different sizes
        ("full", [*TINY, "--accumulate", "4", "--batch-size", "29"]),  # micro-batches of different sizes
        ("full", [*TINY, "--accumulate", "100", "--batch-size", "12", "--set", "data.balance=weights"]),
        ("full", [*TINY, "--mixup", "0.4", "--cutmix", "1", "--accumulate", "2", "--batch-size", "12"]),
    ],
    ids=["head", "full", "cnn", "efficientnet", "swa", "accumulate", "weights", "blended"],
)
def test_two_processes_give_the_result_of_one_up_to_rounding(process, manifest_file, mode: str, more) -> None:
    arguments = ["--mode", mode, "--epochs", "1", "--batch-size", "36", *more]
    started = torchrun(2, manifest_file, *arguments, "--name", "two", "--cache-dir", "other", "--json")
    out, err = started.communicate(timeout=900)
    assert started.returncode == 0, err
    assert json.loads(out)["compute"]["processes"] == 2  # only the main process prints
    alone = process("train", "--split", manifest_file, *OPTIONS.split(), *arguments, "--name", "one")
    assert alone.code == 0, alone.err
    one, two = record("one"), record("two")
    swa = "swa" in more  # many steps on few images amplify rounding errors
    for key in ("train_loss",) if swa else ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
        assert one["history"][0][key] == pytest.approx(two["history"][0][key], rel=1e-2 if swa else 1e-4)
    a, b = (load_file(f"runs/{name}/model.safetensors") for name in ("one", "two"))
    assert swa or all(allclose(a[name], b[name], rtol=1e-3, atol=1e-4) for name in a)
    if mode == "head":
        assert "prefix cache: on" in two["compute"]["decisions"][0]
        rows = [next(Path(folder).glob("prefix/*/rows.bin")).stat().st_size for folder in ("cache", "other")]
        assert rows[0] == rows[1] > 0


def test_a_range_test_in_two_processes_gives_the_result_of_one(process, manifest_file) -> None:
    arguments = [*TINY, "--mode", "full", "--find-lr", "--accumulate", "2", "--mixup", "0.2", "--json"]
    started = torchrun(2, manifest_file, *arguments, "--name", "two", "--cache-dir", "other")
    out, err = started.communicate(timeout=900)
    assert started.returncode == 0, err
    alone = process("train", "--split", manifest_file, *OPTIONS.split(), *arguments, "--name", "one")
    assert alone.code == 0, alone.err
    one, two = alone.json, json.loads(out)
    steps = 50  # before the loss explodes and amplifies rounding errors
    assert one["lr"][:steps] == two["lr"][:steps] and len(one["lr"]) > steps
    assert one["loss"][:steps] == pytest.approx(two["loss"][:steps], rel=1e-2)


def test_a_network_with_synchronized_layers_can_be_pickled() -> None:
    net = make_net("resnet18", resnet18(), 3, 0.5)
    parameters, state = list(map(id, net.parameters())), list(net.state_dict())
    images = torch.rand(2, 3, 32, 32)
    before = net.eval()(images)
    assert convert_sync_layers(net, BatchSlice()) == []
    assert list(map(id, net.parameters())) == parameters and list(net.state_dict()) == state
    assert not any(
        type(module) in (nn.BatchNorm2d, nn.Dropout) for module in net.modules() if module is not net.head[0].layer
    )
    copy = pickle.loads(pickle.dumps(net.eval()))
    assert torch.equal(copy(images), net(images)) and torch.equal(net(images), before)


def test_a_killed_process_ends_the_run_which_can_be_resumed(process, manifest_file) -> None:
    started = torchrun(2, manifest_file, "--mode", "full", "--epochs", "12", "--patience", "0", "--name", "broken")
    checkpoint, deadline = Path("runs/broken/resume.pt"), time.monotonic() + 600
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, err = started.communicate(timeout=900)
    assert started.returncode != 0 and "inat-ft train --resume runs/broken" in err, err
    assert not Path("runs/broken/record.json").exists()
    resumed = process("train", "--resume", "runs/broken", "--json")
    assert resumed.code == 0 and len(resumed.json["history"]) == 12


def test_each_process_has_a_shard_of_each_micro_batch() -> None:
    for count in (2, 5, 29, 64):
        for size in (1, 2, 3):
            for parts in (1, 2, 4):
                everyone = [ProcessGroup(rank, size).micro_batches(count, parts) for rank in range(size)]
                for part, wanted in enumerate(torch.arange(count).tensor_split(parts)):
                    assert [row for batches in everyone for row in batches[part][1]] == wanted.tolist()
                    assert all(batches[part][0] == everyone[0][part][0] for batches in everyone)


def test_shards_are_complete_and_balanced() -> None:
    for count in (1, 5, 64, 67):
        for size in (1, 2, 3, 8):
            parts = [range(count)[ProcessGroup(rank, size).shard(count)] for rank in range(size)]
            assert [number for part in parts for number in part] == list(range(count))
            assert [len(part) for part in parts] == ProcessGroup(0, size).shard_sizes(count)
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
