"""Entry points of installed packages, found by name; those that are broken are named with package and reason."""

from pathlib import Path

import pytest
from inat_ft_doctor.checks import _plugins

from inat_ft import registry
from inat_ft.errors import ConfigError, PluginError

MODULE = """
from inat_ft.exporters import Exporter
from inat_ft.tracking import Tracker

class Good(Tracker):
    def log(self, epoch):
        raise {error}

class Silent(Tracker):
    pass

class Wrong(Exporter):
    pass

number = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that registers trackers of a package, as `pip install` does."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trackers_of_test.py").write_text(MODULE.format(error="ValueError('full')"))

    def make(package: str, **targets: str) -> None:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        entries = "".join(f"{name} = {target}\n" for name, target in targets.items())
        (info / "entry_points.txt").write_text(f"[{registry.TRACKERS}]\n{entries}")
        registry.all_plugins.cache_clear()

    yield make
    registry.all_plugins.cache_clear()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("trackers_of_test:Silent", r"tracker 'mine' of package 'one' breaks the contract: .*Silent has no log\(\)"),
        ("trackers_of_test:Wrong", "breaks the contract: trackers_of_test:Wrong is not derived from Tracker"),
        ("trackers_of_test:number", "tracker 'mine' of package 'one' is not a class"),
        ("nowhere:Mine", "cannot be imported from nowhere:Mine: ModuleNotFoundError"),
    ],
)
def test_a_broken_plugin_is_named_with_package_and_reason(install, target: str, message: str) -> None:
    install("one", mine=target, good="trackers_of_test:Good")
    with pytest.raises(PluginError, match=message):
        registry.get(registry.TRACKERS, "mine").load()
    assert registry.get(registry.TRACKERS, "good").load().__name__ == "Good"
    count, problem = _plugins(registry.TRACKERS)
    assert count.detail == "7 installed, 2 from other packages" and problem.status == "problem"
    assert "'mine' of package 'one'" in problem.detail


def test_a_failing_method_is_reported_with_the_plugin(install) -> None:
    install("one", good="trackers_of_test:Good")
    tracker = registry.get(registry.TRACKERS, "good").load()()
    with pytest.raises(
        PluginError, match=r"tracker 'good' of package 'one' failed in log\(\): ValueError: full"
    ) as failed:
        registry.call_plugin(tracker.log, None)
    assert "pip uninstall one" in failed.value.hint and isinstance(failed.value.__cause__, ValueError)


def test_a_name_is_unknown_or_registered_twice(install) -> None:
    with pytest.raises(ConfigError, match="unknown tracker 'wandbb': did you mean 'wandb'") as unknown:
        registry.get(registry.TRACKERS, "wandbb")
    assert "installed: files, mlflow, tensorboard, trackio, wandb" in unknown.value.hint
    install("one", good="trackers_of_test:Good", wandb="trackers_of_test:Good")
    install("two", good="trackers_of_test:Good")
    with pytest.raises(PluginError, match="'one', 'two' all register a tracker 'good'"):
        registry.get(registry.TRACKERS, "good")
    assert registry.get(registry.TRACKERS, "wandb").is_builtin
    checks = [(check.status, check.detail) for check in _plugins(registry.TRACKERS)]
    assert ("note", "tracker 'wandb' of package 'one' is not used") in checks
    assert [status for status, _ in checks].count("problem") == 2


@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_built_in_plugin_keeps_the_contract_of_its_group(group: str) -> None:
    for claims in registry.plugins(group).values():
        for plugin in claims:
            plugin.load()
