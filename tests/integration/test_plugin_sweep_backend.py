"""The example sweep backend, installed as a package, decides the points of a sweep."""

import json
import subprocess
from pathlib import Path

import pytest
from inat_ft_sweeps.base import SweepBackend, SweepState, SweepStatus

from inat_ft.errors import PluginError
from inat_ft.testing import check_sweep_backend
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("sweep_backend")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_and_the_built_in_backend_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugins" / "sweep_backend"))
    from halton_search import Halton

    check_sweep_backend(Halton())
    check_sweep_backend(SweepBackend())


def test_the_check_names_what_a_backend_breaks() -> None:
    class Random(SweepBackend):
        def ask(self, spec, trials, seed):
            import random

            return random.choice(spec.points())

    class Wrong(SweepBackend):
        def ask(self, spec, trials, seed):
            return {"mode": "head", "lr": 7.0}

    class Lazy(SweepBackend):
        schedules_here = False

        def run(self, sweep, objective, count, log):
            return SweepStatus(SweepState.FINISHED)

    with pytest.raises(AssertionError, match="two answers"):
        for _ in range(20):
            check_sweep_backend(Random())
    with pytest.raises(PluginError, match=r"invalid point: lr=7\.0 is not a possible value"):
        check_sweep_backend(Wrong())
    with pytest.raises(AssertionError, match="recorded no trial"):
        check_sweep_backend(Lazy())


def test_a_sweep_backend_plugin_is_selected_by_name(python: Path, manifest_file: Path) -> None:
    settings = {"data.split": manifest_file, "backbone": "cnn", "model.filters": 16, "data.image_size": 32, "epochs": 1}
    fixed = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    refused = run(python, "sweep", "create", "--backend", "halto", *fixed)
    assert refused.returncode == 2 and "unknown sweep backend 'halto': did you mean 'halton'?" in refused.stderr
    created = run(python, "sweep", "create", "--backend", "halton", "--name", "even", "--json", *fixed)
    assert created.returncode == 0, created.stderr
    assert json.loads(created.stdout)["backend"] == "halton"
    ran = run(python, "sweep", "run", "--count", 2)
    assert ran.returncode == 0, ran.stderr
    trials = json.loads(run(python, "sweep", "status", "--json").stdout)["trials"]
    assert [trial["state"] for trial in trials] == ["complete"] * 2
    listed = json.loads(run(python, "sweep", "list", "--json").stdout)
    assert listed[0]["backend"] == "halton"
