"""The example metric, installed as a package, is used by `inat-ft eval` and `inat-ft compare`."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_plugins import register

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("metric")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_metric_plugin_is_evaluated_and_compared(python: Path, manifest_file: Path) -> None:
    for name, epochs in (("one", 1), ("two", 2)):
        options = ["--backbone", "cnn", "--set", "model.filters=16", "--image-size", 32, "--epochs", epochs]
        ran = run(python, "train", "--split", manifest_file, *options, "--name", name)
        assert ran.returncode == 0, ran.stderr
        ran = run(python, "eval", f"runs/{name}")
        assert ran.returncode == 0 and "Cohen's kappa" in ran.stdout, ran.stderr
    kappa = json.loads(Path("runs/two/record.json").read_text())["test"]["metrics"]["kappa"]
    assert -1 <= kappa["low"] <= kappa["value"] <= kappa["high"] <= 1
    ran = run(python, "compare", "runs/one", "runs/two", "--metric", "kappa", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["metric"] == "kappa" and found["pairs"][0]["difference"]["method"] == "Gaffke"
    ran = run(python, "compare", "runs/one", "runs/two", "--metric", "kapa")
    assert ran.returncode == 2 and "unknown metric 'kapa': did you mean 'kappa'?" in ran.stderr


def test_a_metric_that_fails_is_named_and_the_others_are_computed(python: Path, tmp_path: Path) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    body = "from inat_ft.metrics import Metric\n\nclass Nan(Metric):\n    def value(self, predictions):\n        "
    (site / "nan_metric.py").write_text(body + "return float('nan')\n")
    (site / "zero_metric.py").write_text(body.replace("Nan", "Zero") + "return 1 / 0\n")
    entries = "nan = nan_metric:Nan\nzero = zero_metric:Zero\nlost = nowhere:Lost\n"
    register(site, "broken-metrics", f"[inat_ft.metrics]\n{entries}")
    (tmp_path / "p.csv").write_text("path,true,predicted\na,cat,cat\nb,dog,cat\n")
    ran = run(python, "record", "new", "p.csv", "--name", "x", "--out", "x.json", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["test"]["metrics"]
    assert {"accuracy", "kappa"} <= found.keys() and not found.keys() & {"nan", "zero", "lost"}
    assert "metric 'zero' of package 'broken-metrics' failed in interval(): ZeroDivisionError" in ran.stderr
    assert (
        "metric 'nan' of package 'broken-metrics' failed in interval(): ValueError: value() returned nan" in ran.stderr
    )
    assert "metric 'lost' of package 'broken-metrics' cannot be imported from nowhere:Lost" in ran.stderr
