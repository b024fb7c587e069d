"""The operations of a process group, in two processes: this one and a fork of it."""

import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import distributed as dist
from torchvision.ops import StochasticDepth

from inat_ft.engine import distributed
from inat_ft.engine.distributed import (
    SINGLE_PROCESS,
    BatchSlice,
    ProcessGroup,
    accumulates,
    communication,
    convert_sync_layers,
    init_distributed,
)
from inat_ft.errors import InatFtError
from inat_ft.models.dropout import Dropout
from inat_ft.training import Directories, TrainCallbacks, train

CPU = torch.device("cpu")
Work = Callable[[ProcessGroup], Any]


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Work], list[Any]]]:
    """Run a function in both processes of a group and return both results."""

    def run(work: Work) -> list[Any]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside the threads of the test runner
            child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ["RANK"] = os.environ["LOCAL_RANK"] = "1"
                torch.save(work(init_distributed(CPU)), "result-1.pt")
                code = 0
            finally:
                os._exit(code)
        result = work(init_distributed(CPU))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return [result, torch.load("result-1.pt", weights_only=True)]

    yield run
    distributed._leave()
    assert not dist.is_initialized()


def test_values_are_summed_gathered_and_broadcast(both) -> None:
    def work(group: ProcessGroup) -> list[Any]:
        rows = torch.full((group.rank + 2, 3), float(group.rank + 1))
        group.barrier()
        summed = group.all_reduce(torch.tensor([group.rank + 1.0, 5.0]))
        again = init_distributed(CPU)
        return [
            [again.rank, again.size, group.is_main_process],
            summed,
            group.all_gather(rows, [2, 3]),
            group.gather(rows, [2, 3]),
            group.broadcast({"of": group.rank}),
        ]

    first, second = both(work)
    assert (first[0], second[0]) == ([0, 2, True], [1, 2, False])
    whole = torch.tensor([1.0] * 6 + [2.0] * 9).reshape(5, 3)
    for summed, gathered, value in ((each[1], each[2], each[4]) for each in (first, second)):
        assert summed.tolist() == [3.0, 10.0] and [len(rows) for rows in gathered] == [2, 3]
        assert torch.equal(torch.cat(gathered), whole) and value == {"of": 0}
    assert torch.equal(torch.cat(first[3]), whole) and second[3] == []


class Small(nn.Module):
    """A network with each kind of layer that depends on the other rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(0.4), StochasticDepth(0.3, "row")),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), Dropout(0.5), nn.Linear(4, 2)),
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


def step(net: nn.Module, images: Tensor) -> Tensor:
    torch.manual_seed(5)
    outputs: Tensor = net(images)
    (outputs * torch.arange(2.0)).square().sum().backward()
    return outputs.detach()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_batch_in_two_shards_gives_the_outputs_gradients_and_statistics_of_the_whole(both, memory) -> None:
    torch.manual_seed(1)
    alone, images = Small(), torch.randn(7, 3, 8, 8).contiguous(memory_format=memory)
    start = {name: tensor.clone() for name, tensor in alone.state_dict().items()}
    outputs = step(alone, images)

    def work(group: ProcessGroup) -> list[Any]:
        net = Small()
        net.load_state_dict(start)
        own = group.shard(7)
        assert convert_sync_layers(net, BatchSlice(own.start, 7)) == []
        found = step(net, images[own])
        for parameter in net.parameters():
            group.all_reduce(parameter.grad)
        return [found, [parameter.grad for parameter in net.parameters()], dict(net.state_dict())]

    first, second = both(work)
    torch.testing.assert_close(torch.cat([first[0], second[0]]), outputs)
    for _, gradients, state in (first, second):
        expected = [parameter.grad for parameter in alone.parameters()]
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-3)  # the order of summation differs
        torch.testing.assert_close(state, dict(alone.state_dict()))


def test_gradients_are_averaged_in_the_last_micro_batch(both) -> None:
    def work(group: ProcessGroup) -> list[Tensor]:
        net = nn.Linear(1, 1, bias=False)
        parallel, found = group.data_parallel(net), []
        for is_last in (False, True):
            with accumulates(parallel, is_last):
                parallel(torch.full((1, 1), group.rank + 1.0)).sum().backward()
            found.append(net.weight.grad.clone())
        return found

    assert [[each.item() for each in found] for found in both(work)] == [[1.0, 3.0], [2.0, 3.0]]


BLENDED = {"strategy__name": "full", "optim__mixup": 0.4, "optim__accumulate": 2, "optim__optimizer": "sgd"}
FROZEN = {"compute__cache": "prefix"}


@pytest.mark.parametrize("given", [BLENDED, FROZEN], ids=["blended", "frozen"])
def test_two_processes_train_the_network_of_one(both, config, tmp_path, given) -> None:
    settings = config(**given, optim__epochs=1, stop__patience=0)
    record, folder = train(settings, Directories(tmp_path / "alone", tmp_path / "cache"))

    def work(group: ProcessGroup) -> list[Any]:
        logged: list[str] = []
        together = Directories(tmp_path / "together", tmp_path / "caches")
        found, run = train(settings, together, TrainCallbacks(log=logged.append))
        return [found.history[0].train_loss, found.history[0].val_loss, len(logged) > 0, str(run)]

    first, second = both(work)
    assert (
        first[:2] == second[:2] == pytest.approx([record.history[0].train_loss, record.history[0].val_loss], rel=1e-4)
    )
    assert first[3] == second[3] and first[2] and not second[2]  # one run, and one process prints
    ours, theirs = (load_file(Path(each) / "model.safetensors") for each in (first[3], folder))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    rows = [
        sorted(file.read_bytes() for file in tmp_path.glob(f"{name}/prefix/*/index.bin"))
        for name in ("cache", "caches")
    ]
    assert list(map(len, rows[0])) == list(map(len, rows[1])) and (rows[0] or "strategy__name" in given)


def test_a_lost_process_is_named(both) -> None:
    def work(group: ProcessGroup) -> str:
        if group.rank == 0:
            with pytest.raises(InatFtError, match="another process of this training stopped") as caught:
                for _ in range(100):
                    group.all_reduce(torch.ones(1))
            return caught.value.hint
        return ""

    assert "it was killed, for example because memory ran out" in both(work)[0]


def test_other_errors_of_a_communication_are_kept() -> None:
    with pytest.raises(RuntimeError, match="shape"), communication():
        raise RuntimeError("the shape is wrong")


def test_a_single_process_needs_no_group() -> None:
    rows, net = torch.ones(2, 3), nn.Linear(1, 1)
    assert init_distributed(CPU) is SINGLE_PROCESS and not dist.is_initialized()
    assert SINGLE_PROCESS.all_reduce(rows) is rows and SINGLE_PROCESS.all_gather(rows, [2])[0] is rows
    assert SINGLE_PROCESS.data_parallel(net) is net and SINGLE_PROCESS.broadcast(net) is net


def test_layers_without_a_synchronized_version_are_named() -> None:
    class OwnNorm(nn.BatchNorm1d):
        pass

    shared = nn.Dropout(0.5)
    net = nn.Sequential(OwnNorm(2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2), shared, shared)
    assert convert_sync_layers(net, BatchSlice()) == ["BatchNorm1d", "OwnNorm"]
    assert net[3] is net[4] and net[3].layer is shared
