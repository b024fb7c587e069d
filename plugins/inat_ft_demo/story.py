"""The commands of the demo, what it shows of their output, and the conclusion from the measured results."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import typer

from inat_ft.records import write_text

SCRATCH, HEAD, PARTIAL = "part-a", "part-b-head", "part-b-partial"
_TRAINING = "--epochs 10 --batch-size 32 --lr 1e-3"
_WIDTH = 80
_COMPARED = r"^ name|^ \S+ +0\.\d{4} |^[^ ].*(best|better|different|report)"
_ACCURACY = "^ metric|^ accuracy  "

_SWEEP = """\
# Learning rates for the head. All trials use the same cached features.
method: grid
parameters:
  lr: {{values: [1.0e-3, 3.0e-3, 1.0e-2, 3.0e-2]}}
  strategy.name: {{value: head}}
  model.backbone: {{value: {backbone}}}
  data.image_size: {{value: 64}}
  optim.epochs: {{value: 10}}
  optim.batch_size: {{value: 32}}
"""


class Network(NamedTuple):
    """A pretrained network. backbone: as in `inat-ft train`. title: its name in a sentence."""

    backbone: str
    title: str

    @property
    def tuned(self) -> str:
        """Name of the best run of the sweep."""
        return f"{self.backbone}-head-1"

    @property
    def sweep(self) -> str:
        """The sweep file."""
        return _SWEEP.format(backbone=self.backbone)


PACKAGED = Network("efficientnet_lite0", "EfficientNet-Lite0")
"""Its weights are in a package of the extra `demo`."""
DOWNLOADED = Network("resnet18", "ResNet18")


class Command(NamedTuple):
    """A command line. shown: a pattern of the lines of its result that the demo shows; the others become `...`."""

    line: str
    shown: str = ""


class Chapter(NamedTuple):
    """Commands under a heading, with a sentence about them."""

    title: str
    text: str
    commands: tuple[Command, ...]


def chapters(network: Network) -> tuple[Chapter, ...]:
    """Return the chapters of the demo with this pretrained network."""
    options = f"--backbone {network.backbone} --image-size 64"
    return (
        Chapter(
            "Split the images",
            "Handwritten digits. To have few training images, as in most projects, the demo leaves out four of five. "
            "The folder val becomes the test set.",
            (
                Command("fetch digits --to data"),
                Command(
                    "split data/digits --exclude 'train/*/*[2-9].png' --val-fraction 0.3", "^ class|^ total|^manifest"
                ),
            ),
        ),
        Chapter(
            "Part A: a small network from scratch",
            "A CNN with random weights.",
            (Command(f"train --backbone cnn --image-size 32 --set model.filters=32 {_TRAINING} --name {SCRATCH}"),),
        ),
        Chapter(
            "Part B: a new head on a pretrained network",
            f"{network.title} was pretrained on ImageNet. Only its new last layer is trained; the outputs of the other "
            "layers are computed once, in the first epoch, and cached.",
            (Command(f"train --mode head {options} {_TRAINING} --name {HEAD}"),),
        ),
        Chapter(
            "A better strategy",
            "The same images and number of epochs, but the last third of the network is trained too.",
            (Command(f"train --mode partial {options} {_TRAINING} --name {PARTIAL}"),),
        ),
        *_selection(network),
    )


def _selection(network: Network) -> tuple[Chapter, ...]:
    """Return the chapters after the training: the sweep and the comparison."""
    return (
        Chapter(
            "A small sweep",
            "Does another learning rate help the head? The file sweep.yaml lists four. The features are cached already.",
            (
                Command("sweep create sweep.yaml --name rates"),
                Command("sweep run rates"),
                Command("sweep best rates --train --eval", "^ trial|^ +[0-9]|^test accuracy"),
            ),
        ),
        Chapter(
            "Evaluate on the test set, and compare",
            "Each evaluation of the test set is counted.",
            (
                Command(f"eval runs/{SCRATCH}", _ACCURACY),
                Command(f"eval runs/{HEAD}", _ACCURACY),
                Command(f"eval runs/{PARTIAL}", _ACCURACY),
                Command(
                    f"compare runs/{SCRATCH} runs/{HEAD} runs/{network.tuned} runs/{PARTIAL} --html report.html",
                    _COMPARED,
                ),
            ),
        ),
    )


def tell(inat_ft: Any, network: Network) -> Iterator[str]:
    """Run all commands in the working folder; yield what to print, the conclusion last.

    inat_ft: the command `inat-ft`. It runs in this process, which saves repeated imports.
    """
    os.environ["COLUMNS"] = str(min(_WIDTH, shutil.get_terminal_size().columns))
    write_text(Path("sweep.yaml"), network.sweep)
    for number, chapter in enumerate(chapters(network), 1):
        yield f"\n{number}. {chapter.title}\n{_paragraph(chapter.text)}"
        for command in chapter.commands:
            yield f"\n{_shown_line(command.line)}"
            yield from _run(inat_ft, command)
    yield f"\nWhat the demo measured\n{_paragraph(conclusion(Path('runs'), network))}"


class _Epochs(io.StringIO):
    """A stream that passes on epochs and warnings, and omits the other messages of a command."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        super().write(text)
        *lines, rest = self.getvalue().split("\n")
        for line in lines:
            if line.startswith(("epoch ", "warning: ")):
                print(_paragraph(line), file=self.stream, flush=True)
        self.seek(0)
        self.truncate()
        super().write(rest)
        return len(text)


def _run(inat_ft: Any, command: Command) -> Iterator[str]:
    result = io.StringIO()
    with redirect_stdout(result), redirect_stderr(_Epochs(sys.stderr)):
        code = inat_ft.main(shlex.split(command.line), prog_name="inat-ft", standalone_mode=False)
    lines = [line.rstrip() for line in result.getvalue().splitlines() if line.strip()]
    shown = [line for line in lines if re.search(command.shown, line)]
    yield from (line if line.startswith(" ") else _paragraph(line) for line in shown)
    if len(shown) < len(lines):
        yield "..."
    if code:
        raise typer.Exit(code)


def _shown_line(line: str) -> str:
    """Return a command line that can be copied, continued before its options where it is too long."""
    words = re.split(r" (?=--|runs/)", f"$ inat-ft {line}")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) + 3 > _WIDTH:
            lines[-1] += " \\"
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    bullet = "  " if text.startswith("- ") else ""
    fill = textwrap.TextWrapper(_WIDTH, subsequent_indent=bullet, break_on_hyphens=False, break_long_words=False).fill
    return "\n".join(map(fill, text.split("\n")))


def conclusion(runs: Path, network: Network) -> str:
    """Return what the test results of the four runs say, and what to expect on photographs."""
    better, scores = _compare(runs / PARTIAL, runs / HEAD)
    says = {True: "is better than", False: "is worse than", None: "is not significantly different from"}
    strategies = f"training the last third of the network {says[better]} training only its head ({scores})"
    better, scores = _compare(runs / network.tuned, runs / HEAD)
    says = {True: "improves the head", False: "makes the head worse", None: "does not change the head significantly"}
    tuned = f"the learning rate that the sweep chose {says[better]} ({scores})"
    better, scores = _compare(runs / SCRATCH, runs / PARTIAL)
    says = {True: "is better than", False: "is worse than", None: "is not significantly different from"}
    scratch = f"the small network from scratch {says[better]} the fine-tuned one ({scores})"
    return (
        f"- With the same number of epochs, {strategies}.\n- In the sweep, {tuned}.\n- On these images, {scratch}. They are "
        "drawings of 8 x 8 pixels, to which features learned from photographs transfer poorly. On photographs, expect the "
        "fine-tuned network to be far better than one from scratch.\n"
        "- Next, use your own photographs, one folder for each class: inat-ft split PHOTOS"
    )


def _compare(run: Path, other: Path) -> tuple[bool | None, str]:
    """Return whether a run is significantly better than another one, None if neither is, and their test accuracies."""
    import inat_ft

    found = inat_ft.compare(run, other)
    accuracy = {candidate.name: candidate.record.test_accuracy for candidate in found.candidates}
    scores = f"{accuracy[run.name]:.4f} and {accuracy[other.name]:.4f}"
    return (found.reference == run.name if found.pairs[0].is_significant else None), scores
