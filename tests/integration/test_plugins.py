"""The example strategy and backbone, and broken plugins, installed as packages into a virtual environment."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("strategy", "backbone")


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-m", "inat_ft", *map(str, arguments)], capture_output=True, text=True, check=False)


def register(site: Path, package: str, entry_points: str) -> None:
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_a_strategy_plugin_is_listed_and_trains(python: Path, manifest_file: Path) -> None:
    listed = run(python, "strategies", "every-other", "--json")
    assert listed.returncode == 0 and "alpha" in listed.stdout and "multiple of the head's" in listed.stdout
    arguments = [
        "--backbone",
        "resnet18",
        "--weights",
        "none",
        "--image-size",
        32,
        "--epochs",
        1,
        "--split",
        manifest_file,
    ]
    ran = run(python, "train", *arguments, "--mode", "every-other", "--set", "strategy.alpha=0.5", "--name", "mine")
    assert ran.returncode == 0, ran.stderr
    assert "alpha: 0.5" in Path("runs/mine/config.yaml").read_text()
    wrong = run(python, "train", *arguments, "--mode", "every-other", "--set", "strategy.alpah=0.5")
    assert wrong.returncode == 2 and "did you mean 'alpha'" in wrong.stderr


def test_a_backbone_plugin_trains_and_is_evaluated(python: Path, manifest_file: Path) -> None:
    arguments = ["--backbone", "little", "--set", "model.width=8", "--image-size", 32, "--epochs", 2]
    arguments += ["--split", manifest_file]
    ran = run(python, "train", *arguments, "--name", "little")
    assert ran.returncode == 0, ran.stderr
    assert run(python, "eval", "runs/little", "--quiet").returncode == 0


def test_a_broken_plugin_is_named_and_breaks_nothing_else(python: Path) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    (site / "exits.py").write_text("raise SystemExit('gone')")
    (site / "empty.py").write_text("from inat_ft.strategies import Strategy\n\nclass Empty(Strategy):\n    pass\n")
    for package, entry in (
        ("exits-one", "exits = exits:Exits"),
        ("empty-one", "empty = empty:Empty"),
        ("broken-one", "bad = nowhere:Bad"),
        ("clash-one", "head = every_other:EveryOther"),
        ("odd-one", "odd = json:loads"),
    ):
        register(site, package, f"[inat_ft.strategies]\n{entry}\n")
    assert run(python, "--help").returncode == 0
    listed = run(python, "strategies")
    assert listed.returncode == 0
    assert "No module named 'nowhere'" in listed.stdout and "broken-one" in listed.stdout
    assert "SystemExit: gone" in listed.stdout and "empty:Empty has no groups()" in listed.stdout
    assert "partial " in listed.stdout, "the others are listed still"
    assert "the name is taken by package 'inat-ft'" in listed.stdout and "odd-one" in listed.stdout
    assert "broken: strategy 'bad' of package 'broken-one' cannot be imported from nowhere:Bad" in listed.stdout
    made = run(python, "sweep", "create", "--strategies", "--set", "backbone=resnet18")
    assert made.returncode == 0, made.stderr
    assert "skipped: bad: strategy 'bad' of package 'broken-one' cannot be imported" in made.stderr
    assert "skipped: every-other: " in made.stderr
    used = run(python, "train", "--mode", "bad", "--dry-run")
    assert used.returncode == 1 and "package 'broken-one' cannot be imported" in used.stderr


def test_a_torchvision_name_cannot_be_replaced_and_train_warns(python: Path, manifest_file: Path) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    register(site, "taker-one", "[inat_ft.backbones]\nresnet18 = little:Little\n")
    arguments = ["--backbone", "resnet18", "--weights", "none", "--split", manifest_file, "--dry-run", "--json"]
    ran = run(python, "train", *arguments)
    assert ran.returncode == 0, ran.stderr
    assert "backbone 'resnet18' of package 'taker-one' is not used" in ran.stderr
    assert '"stage": "layer4"' in ran.stdout


def test_a_class_that_raises_is_reported_with_all_its_names(python: Path, manifest_file: Path) -> None:
    site = next(python.parents[1].glob("lib/python*/site-packages"))
    (site / "raising.py").write_text(
        "from inat_ft.strategies import Strategy\n\n"
        "class Raising(Strategy):\n    def groups(self, net, epoch):\n        return [net.nothing]\n"
    )
    register(site, "raising-one", "[inat_ft.strategies]\nfirst = raising:Raising\nsecond = raising:Raising\n")
    arguments = ["--backbone", "resnet18", "--weights", "none", "--split", manifest_file, "--dry-run"]
    ran = run(python, "train", *arguments, "--mode", "second")
    assert ran.returncode == 1
    assert (
        "strategy 'first' of package 'raising-one' or 'second' of package 'raising-one' failed in groups" in ran.stderr
    )
    assert "pip uninstall raising-one" in ran.stderr
