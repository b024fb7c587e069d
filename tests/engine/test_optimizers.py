"""Optimizers are plugins: the built-in ones fulfil the contract, and one that breaks it is named."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inat_ft.config import OptimConfig
from inat_ft.engine.optimizer import make_optimizer
from inat_ft.engine.plan import make_plan
from inat_ft.errors import ConfigError, InatFtError, PluginError
from inat_ft.optim import Adam, AdamW, Optimizer, Sgd
from inat_ft.registry import all_plugins
from inat_ft.settings import load_config
from inat_ft.strategies import Group, Strategy
from inat_ft.testing import check_optimizer, tiny_net
from inat_ft.training import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "optimizer"


class All(Strategy):
    def groups(self, net, epoch):
        return [Group(net.parameters())]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package with one optimizer from its source code."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def make(entry: str, source: str, package: str = "someones-optimizer") -> None:
        module = entry.partition("= ")[2].partition(":")[0]
        info = site / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[inat_ft.optimizers]\n{entry}\n")
        monkeypatch.delitem(sys.modules, module, raising=False)
        all_plugins.cache_clear()

    yield make
    all_plugins.cache_clear()


@pytest.fixture
def lion(install: Callable[..., None]) -> None:
    install("lion = lion:Lion", (EXAMPLE / "lion.py").read_text())


@pytest.mark.parametrize("optimizer", [Adam(), AdamW(), Sgd()])
def test_builtin_optimizers_pass_the_check(optimizer: Optimizer) -> None:
    check_optimizer(optimizer)


def test_the_example_passes_the_check(lion) -> None:
    from lion import Lion

    check_optimizer(Lion())
    check_optimizer(Lion(beta1=0.5))


def test_an_unknown_optimizer_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="unknown optimizer 'adamm': did you mean 'adam'") as caught:
        load_config(None, [("optim.optimizer", "adamm")])
    assert "installed: adam, adamw, sgd" in caught.value.hint
    with pytest.raises(ConfigError, match="unknown key 'momentun' in optim: did you mean 'momentum'"):
        load_config(None, [("optim.momentun", 0.5)])


def test_options_of_a_plugin_are_validated_and_recorded(lion, config, directories) -> None:
    settings = config(optim__optimizer="lion", optim__beta1=0.5, optim__lr=1e-4, strategy__name="full")
    assert settings.optim.options == {"beta1": 0.5, "beta2": 0.99}
    record, directory = train(settings, directories)
    assert record.config["optim"]["beta1"] == 0.5 and "beta1: 0.5" in (directory / "config.yaml").read_text()
    assert record.history[-1].train_loss < record.history[0].train_loss
    with pytest.raises(ConfigError, match="unknown key 'beta3' in optim: did you mean 'beta"):
        config(optim__optimizer="lion", optim__beta3=0.5)
    with pytest.raises(ConfigError, match="unknown key 'beta1' in optim: 'adam' has no options"):
        config(optim__beta1=0.5)
    back = load_config(directory / "config.yaml", [("optim.optimizer", "sgd")])
    assert back.optim.options == {} and back.optim.lr == settings.optim.lr


BASE = "import torch\nfrom inat_ft.optim import Optimizer\n\nclass Mine(Optimizer):\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    def build(self, groups, config):\n        return 3\n", "must return a torch.optim.Optimizer, not 3"),
        (
            "    def build(self, groups, config):\n"
            "        return torch.optim.SGD([p for group in groups for p in group['params']], lr=config.lr)\n",
            "must keep the parameter groups",
        ),
        ("    def build(self, groups, config):\n        raise KeyError('x')\n", "failed in build"),
        ("    rate: float = 1.0\n", "has no build"),
        ("    momentum: float = 1.0\n    def build(self, groups, config): ...\n", "an option 'momentum'"),
        (
            "    def build(self, groups, config):\n"
            "        class Bad(torch.optim.SGD):\n"
            "            def step(self): raise ZeroDivisionError\n"
            "        return Bad(groups, lr=config.lr)\n",
            "failed in step",
        ),
    ],
    ids=["not an optimizer", "groups", "raises", "abstract", "taken option", "step"],
)
def test_a_plugin_that_fails_is_named(install, config, directories, body: str, message: str) -> None:
    install("mine = mine:Mine", BASE + body)
    with pytest.raises(PluginError, match=message) as caught:
        train(config(optim__optimizer="mine"), directories)
    assert "optimizer 'mine' of package 'someones-optimizer'" in str(caught.value)
    train(config(optim__optimizer="sgd", optim__epochs=1), directories)  # others still work


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("p.sub_(p.grad, alpha=0.1)", "group\\['lr'\\]"),
        ("p.sub_(p.grad, alpha=group['lr'])", "group\\['weight_decay'\\]"),
        (
            "self.count = getattr(self, 'count', 0) + 1; "
            "p.mul_(1 - group['lr'] * group['weight_decay']).sub_(p.grad, alpha=group['lr'] / self.count)",
            "after a resume",
        ),
    ],
    ids=["learning rate", "weight decay", "state"],
)
def test_the_check_finds_a_step_that_breaks_the_contract(method: str, message: str) -> None:
    scope: dict[str, object] = {}
    source = f"def update(self, group, p):\n    {method}\n"
    exec(source, scope)
    update = scope["update"]

    class Broken(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        update(self, group, p)

    class Mine(Optimizer):
        def build(self, groups, config):
            return Broken(groups, {"lr": config.lr})

    with pytest.raises(AssertionError, match=message):
        check_optimizer(Mine())


def test_a_change_of_optimizers_needs_a_new_run(config, directories) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted

    from inat_ft.training import TrainCallbacks

    with pytest.raises(Interrupted):
        train(config(name="a"), directories, TrainCallbacks(on_epoch=interrupt))
    with pytest.raises(InatFtError, match="other settings"):
        train(config(name="a", optim__optimizer="sgd"), directories, resume=directories.runs / "a")


def test_groups_hold_learning_rate_scale_and_weight_decay() -> None:
    plan = make_plan(All(), tiny_net(), 1, layer_decay=0.5)
    optimizer = make_optimizer(plan.epochs[0], OptimConfig(optimizer="sgd", weight_decay=0.1, lr=0.5))
    assert {group["lr"] for group in optimizer.param_groups} == {0.5}
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.5**depth for depth in range(5)}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
