"""Stages that a strategy freezes and unfreezes: their cached output is never out of date."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inat_ft.config import OptimConfig
from inat_ft.engine.plan import make_plan
from inat_ft.models.net import make_net
from inat_ft.registry import all_plugins
from inat_ft.strategies import Group, Strategy
from inat_ft.training import TrainCallbacks, train

PLUGIN = '''
from inat_ft.registry import plugins
from inat_ft.strategies import Group, Strategy

class Alternate(Strategy):
    """Train the head and the whole network in turn."""
    def groups(self, net, epoch):
        return [Group(net.parameters())] if epoch % 2 else [Group(net.head.parameters())]

class Settle(Strategy):
    """Freeze two more stages in each epoch."""
    def groups(self, net, epoch):
        stages = list(net.stages.values())[2 * epoch :]
        return [Group(p for stage in stages for p in stage.parameters()), Group(net.head.parameters())]
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path / "site"
    info = site / "freezing-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "freezing_plugin.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: freezing\nVersion: 1.0\n")
    names = ("alternate", "settle")
    lines = [f"{name} = freezing_plugin:{name.capitalize()}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[inat_ft.strategies]", *lines, ""]))
    monkeypatch.syspath_prepend(str(site))
    all_plugins.cache_clear()
    yield
    all_plugins.cache_clear()


@pytest.mark.parametrize("name", ["alternate", "settle"])
@pytest.mark.parametrize("more", [{}, {"optim__average": "ema"}, {"data__augment": "flip"}], ids=["", "ema", "flip"])
def test_stages_that_were_trained_before_are_cached_correctly(plugin, config, directories, name, more) -> None:
    settings = {"strategy__name": name, "optim__epochs": 4, "stop__patience": 0, "model__backbone": "cnn", **more}
    cached, plain = (train(config(compute__cache=cache, **settings), directories) for cache in ("prefix", "none"))
    averaged_all = name == "settle" and "optim__average" in more  # the averages of frozen stages still change
    assert any("prefix cache: on" in line for line in cached[0].compute["decisions"]) != averaged_all
    for one, other in zip(cached[0].history, plain[0].history, strict=True):
        assert one.model_dump(exclude={"seconds"}) == other.model_dump(exclude={"seconds"})
    a, b = (load_file(directory / "model.safetensors") for _, directory in (cached, plain))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_resumes_with_stages_that_were_trained_before(plugin, config, directories) -> None:
    settings = {"strategy__name": "alternate", "optim__epochs": 4, "stop__patience": 0, "model__backbone": "cnn"}
    whole, _ = train(config(compute__cache="prefix", **settings), directories)

    def stop(epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config(compute__cache="prefix", name="broken", **settings), directories, TrainCallbacks(on_epoch=stop))
    resumed, _ = train(
        config(compute__cache="prefix", name="broken", **settings), directories, resume=directories.runs / "broken"
    )
    assert [e.model_dump(exclude={"seconds"}) for e in resumed.history] == [
        e.model_dump(exclude={"seconds"}) for e in whole.history
    ]


def test_frozen_prefix_and_its_last_trained_epoch() -> None:
    layers = [torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU()) for _ in range(2)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2)]
    net = make_net("tiny", torch.nn.Sequential(*layers, *head), 2, 0.0)

    class Some(Strategy):
        def groups(self, net, epoch):
            first = (None, 0, None, 1, None)[epoch]
            body = [] if first is None else list(net.stages.values())[first:]
            return [Group([p for stage in body for p in stage.parameters()]), Group(net.head.parameters())]

    plan = make_plan(Some(), net, OptimConfig(epochs=5).epochs)
    whole = len(net.stages)
    middle = plan.frozen_prefix(3)
    assert [plan.frozen_prefix(epoch) for epoch in range(5)] == [whole, 0, whole, middle, whole]
    assert 0 < middle < whole
    assert [plan.frozen_prefix(epoch, since_start=True) for epoch in range(5)] == [whole, 0, 0, 0, 0]
    assert [plan.last_trained_epoch(whole, epoch) for epoch in range(5)] == [0, 0, 2, 2, 4]
    assert [plan.last_trained_epoch(middle, epoch) for epoch in range(5)] == [0, 0, 2, 2, 2]
    assert plan.last_trained_epoch(0, 4) == 0


@pytest.mark.parametrize("damage", ["", "null", "\xff", '["a", 1, [2], true]'])
def test_damaged_measurements_in_the_cache_folder_are_made_again(manifest_file: Path, cli, damage: str) -> None:
    words = ["--split", manifest_file, "--backbone", "cnn", "--weights", "none", "--image-size", 32, "--epochs", 1]
    words += ["--mode", "head", "--device", "cpu", "--precision", "fp32", "--runs-dir", "runs", "--cache-dir", "kept"]
    first = cli("train", *words, "--json")
    measurements = list(Path("kept", "checked").glob("*.json"))
    assert measurements
    for file in measurements:
        file.write_text(damage, encoding="latin-1")
    second = cli("train", *words, "--json")
    assert (first.code, second.code) == (0, 0), second.err
    assert second.json["history"][0]["val_loss"] == first.json["history"][0]["val_loss"]
    assert all(file.read_text(encoding="utf-8") not in ("", damage) for file in measurements)
