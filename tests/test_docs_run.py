"""The commands and Python blocks of the tutorial, the how-to guides and the explanations run, on small images."""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from inat_ft_datasets.datasets import fetch_inat12k
from safetensors.torch import load_file

import inat_ft
from tests.cli.test_fetch import nature
from tests.conftest import make_images
from tests.data.serving import serving
from tests.test_docs import ROOT, command_lines
from tools import site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the pretrained ones of a ResNet18: nothing is downloaded."""
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), file)
    return file


def small(words: list[str], weights: Path) -> list[object]:
    """Return a command with a small network and small images; options that come later take precedence."""
    settings = {"model.backbone": "resnet18", "model.weights": str(weights), "data.image_size": 32, "optim.epochs": 1}
    if words[0] == "train" and "--resume" not in words:
        backbone = (
            ["--epochs", 2] if "cnn" in words else ["--backbone", "resnet18", "--weights", weights, "--epochs", 1]
        )
        return [*words, *backbone, "--image-size", 32, "--device", "cpu"]
    if words[:2] == ["sweep", "create"] or words[0] in ("audit", "learning-curve"):
        chosen = {key: value for key, value in settings.items() if key != "optim.epochs"}
        return [*words, *(word for key, value in chosen.items() for word in ("--set", f"{key}={value}"))]
    return [*words, "--count", 2] if words[:2] == ["sweep", "run"] else list(words)


TINY = "image_size=32, epochs=1, device='cpu'"


def head(weights: Path) -> str:
    """Return the arguments in Python of a small training in place of mode="head"."""
    return f"mode='head', backbone='resnet18', weights={str(weights)!r}, {TINY}"


def run(page: str, cli, weights: Path, *skip: str) -> list[str]:
    """Run the commands of a page in order, except those that begin with one of `skip`; return what was run."""
    done = []
    for line in command_lines(ROOT / "docs" / page):
        if not line.startswith(skip):
            ran = cli(*small(shlex.split(line), weights))
            assert ran.code == 0, f"{page}: inat-ft {line}\n{ran.out}{ran.err}"
            done.append(line)
    return done


def python(page: str) -> list[str]:
    return [code for language, code in site.code_blocks((ROOT / "docs" / page).read_text()) if language == "python"]


@pytest.fixture
def photos(images: Path) -> Path:
    """The folder photos in the working folder, with the classes fox, class1 and class2."""
    shutil.copytree(images, "photos")
    Path("photos/class0").rename("photos/fox")
    return Path("photos")


def train(cli, weights: Path, name: str, *words: str) -> None:
    assert cli(*small(["train", "--mode", "head", "--name", name, *words], weights)).code == 0


def test_the_tutorial_runs(cli, weights: Path) -> None:
    with serving(nature()) as server:
        assert cli("fetch", "inat12k", "--to", "data/", "--url", server.url).code == 0
    assert len(run("tutorial.md", cli, weights)) > 15
    assert all(Path(name).is_file() for name in ("report.html", "predictions.csv", "classifier.onnx"))
    assert json.loads(Path("runs/partial/record.json").read_text())["test_accuracy"] is not None


def test_the_tutorial_in_python(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(nature()) as server:
        fetch_inat12k(Path("data"), url=server.url)
    (code,) = python("tutorial.md")
    exec(code.replace('backbone="cnn"', f'backbone="cnn", {TINY}').replace('mode="head"', head(weights)), {})
    assert "macro_f1" in capsys.readouterr().out


def test_own_photographs(photos: Path, cli, weights: Path) -> None:
    run("how-to/own-photographs.md", cli, weights, "split labels.csv")
    rows = [f"{file.as_posix()},{file.parent.name}" for file in sorted(photos.rglob("*.png"))]
    Path("labels.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    assert cli("split", "labels.csv").code == 0


def test_few_images(photos: Path, cli, weights: Path) -> None:
    make_images(Path("new-photos"), classes=2, each=3, seed=1)
    assert cli("split", "photos").code == 0
    run("how-to/few-images.md", cli, weights)


def test_offline(photos: Path, cli, weights: Path) -> None:
    assert cli("split", "photos").code == 0
    assert len(run("how-to/offline.md", cli, weights, "train --mode head --wandb")) == 4


def test_other_programs(photos: Path, cli, weights: Path) -> None:
    assert cli("split", "photos").code == 0
    train(cli, weights, "head")
    names: dict[str, object] = {}
    for code in python("how-to/other-programs.md"):
        exec(code, names)
    run("how-to/other-programs.md", cli, weights, "record wandb", "record huggingface")
    record = json.loads(Path("part-a.json").read_text())
    assert record["num_test"] == len(names["test"]) == 12 and "part-a" in Path("report.html").read_text()


def test_camera_traps(cli, weights: Path) -> None:
    for folder in make_images(Path("photos"), each=24).iterdir():
        for number, file in enumerate(sorted(folder.iterdir())):  # six cameras, two sequences each, of two photographs
            file.rename(folder / f"cam{number // 4}_{folder.name}{number // 2}_{number % 2}.png")
    paths = [file.relative_to("photos").as_posix() for file in sorted(Path("photos").rglob("*.png"))]
    rows = [f"{path},{path.rpartition('_')[0]}" for path in paths]
    Path("sequences.csv").write_text("\n".join(["path,group", *rows]) + "\n")
    run("how-to/camera-traps.md", cli, weights)
    with open("splits/locations.csv", newline="") as file:
        next(file)
        subsets: dict[str, set[str]] = {}
        for row in csv.DictReader(file):
            subsets.setdefault(row["path"].rpartition("/")[2].partition("_")[0], set()).add(row["subset"])
    assert len(subsets) == 6 and all(len(subset) == 1 for subset in subsets.values())


def test_deployment(photos: Path, cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    assert cli("split", "photos").code == 0
    tiny = ["--weights", "none", "--image-size", 32, "--epochs", 1, "--device", "cpu"]
    assert cli("train", "--mode", "head", "--backbone", "resnet50", *tiny, "--name", "resnet50-head-1").code == 0
    run("how-to/deployment.md", cli, Path(), "export runs/resnet50-head-1 --push-to-hub")
    runtime, torchvision_model, predict = python("how-to/deployment.md")
    monkeypatch.setattr(sys, "argv", ["classify.py", "photos/fox/001.png"])
    shown = []
    for code in (runtime, predict):
        capsys.readouterr()
        exec(code, {})
        shown.append(capsys.readouterr().out)
    for label, probability in inat_ft.predict("runs/resnet50-head-1", ["photos/fox/001.png"])[0].top(3):
        (value,) = re.findall(rf"{label}: ([0-9.]+)", shown[0])
        assert float(value) == pytest.approx(probability, abs=0.02) and label in shown[1]
    names: dict[str, object] = {}
    exec(torchvision_model, names)
    assert names["model"].fc.out_features == 3


def test_frozen_batchnorm(photos: Path, cli, weights: Path) -> None:
    assert cli("split", "photos").code == 0
    run("explanation/frozen-batchnorm.md", cli, weights)
    (code,) = python("explanation/frozen-batchnorm.md")
    small = head(weights).replace("epochs=1, ", "")
    exec(code.replace('mode="head"', small), {})
    with pytest.raises(AssertionError):  # the assertion of the page can fail
        exec(code.replace('mode="head"', small.replace("head", "full")), {})


def test_caching_is_exact(photos: Path, cli, weights: Path) -> None:
    assert cli("split", "photos").code == 0
    run("explanation/caching.md", cli, weights)
    cached, uncached = (load_file(f"runs/{name}/model.safetensors") for name in ("cached", "uncached"))
    assert all(torch.equal(cached[key], uncached[key]) for key in cached)


def test_comparison_and_intervals(photos: Path, cli, weights: Path) -> None:
    assert cli("split", "photos").code == 0
    for name, seed in (("a", 0), ("b", 1)):
        train(cli, weights, name, "--seed", str(seed))
        assert cli("eval", f"runs/{name}").code == 0
    for page in ("explanation/comparison.md", "explanation/intervals.md"):
        run(page, cli, weights, "compare runs --group", "eval runs/resnet50")
