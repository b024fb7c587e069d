"""Make the pictures of the documentation, in docs/images: `make screenshots`.

The script runs the commands of `STEPS` on the embedded images of digits, without a network. It records some of them as
animated SVGs, takes screenshots of the pages that they write with Chromium or Chrome, and copies some of their figures.
"""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
BACKBONE = "efficientnet_lite0"

STEPS = (
    ("fetch digits --to data", ""),
    ("split data/digits", "split.svg"),
    ("train --backbone cnn --image-size 32 --set model.filters=32 --epochs 5 --lr 1e-3 --name part-a", ""),
    (f"train --mode head --backbone {BACKBONE} --name defaults", ""),
    (f"train --mode head --backbone {BACKBONE} --epochs 10 --lr 1e-3 --name part-b", "train.svg"),
    ("eval runs/part-a", ""),
    ("eval runs/part-b --cam --coverage 0.9", ""),
    ("runs", "runs.svg"),
    ("compare runs/part-a runs/part-b --html report.html", "compare.svg"),
    (f"sweep create sweep.yaml --name digits --set model.backbone={BACKBONE}", ""),
    ("sweep run digits", ""),
    ("sweep best digits", "sweep-best.svg"),
    ("sweep report digits --out sweep", ""),
    ("runs html --out runs.html", ""),
    (f"audit splits/digits.csv --backbone {BACKBONE} --out audit", ""),
    (f"learning-curve --split splits/digits.csv --backbone {BACKBONE} --target 0.95 --out curve", ""),
    (f"train --mode head --backbone {BACKBONE} --epochs 10 --lr 1e-3 --folds 5 --name folds", ""),
    (f"tune splits/digits.csv --budget 2m --backbone {BACKBONE} --set data.image_size=32 --out tuned", ""),
)
"""The commands in their order, each with the name of its recording."""

_SWEEP = """\
method: grid
metric: {name: val_accuracy, goal: maximize}
parameters:
  lr: {values: [3e-4, 1e-3, 3e-3]}
  dropout: {values: [0, 0.3]}
  epochs: {values: [5, 10]}
"""


class Part(NamedTuple):
    """A picture of a file that the commands write: its upper part, or all of it."""

    file: str
    height: int | None = None
    width: int = 1280
    dark: bool = False


PICTURES = {
    "report.png": Part("report.html", 1120),
    "report-phone.png": Part("report.html", 1500, 390, dark=True),
    "sweep.png": Part("sweep/report.html", 1180),
    "overview.png": Part("runs.html", 1180),
    "audit.png": Part("audit/audit.html", 900),
    "curves.png": Part("runs/part-b/curves.png"),
    "confusion.png": Part("runs/part-b/confusion-val.png"),
    "reliability.png": Part("runs/part-b/figures/reliability-test.png"),
    "cam.png": Part("runs/part-b/figures/cam-test.png", 600),
    "learning-curve.png": Part("curve/learning-curve.png"),
    "risk-coverage.png": Part("runs/part-b/figures/risk-coverage-test.png"),
    "folds.png": Part("runs/folds/folds.png"),
    "tune.png": Part("tuned/report.html", 1000),
}
"""Screenshots of pages, and figures."""

_LONGEST_PAUSE_S = 1.0
"""Longer pauses of a recording are shortened to this length."""
_COLORS = 96


def names() -> set[str]:
    """Return the names of all pictures that the script makes."""
    return {*PICTURES, *(recording for _, recording in STEPS if recording)}


def main() -> None:
    """Make all pictures. An argument names a folder to work in, which is kept with its caches for the next time."""
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary).resolve()
        for name in ("data", "runs", "splits", "sweeps", "tuned"):
            shutil.rmtree(folder / name, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        (folder / "sweep.yaml").write_text(_SWEEP)
        for line, recording in STEPS:
            print(f"inat-ft {line}", flush=True)
            output = run(shlex.split(line), folder)
            if recording:
                (IMAGES / recording).write_text(animated(line, output), encoding="utf-8")
        for name, part in PICTURES.items():
            picture(folder, part, IMAGES / name)
    for file in sorted(IMAGES.iterdir()):
        print(f"{file.stat().st_size / 1024:7.1f} KiB  {file.name}")


def run(words: Sequence[str], folder: Path) -> list[tuple[float, str]]:
    """Run a command with 80 columns and return its lines, each with the time in seconds at which it was printed."""
    environment = {
        **os.environ,
        "COLUMNS": "80",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]),
        "INAT_FT_CACHE_DIR": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "inat_ft", *words]
    start, lines = time.monotonic(), []
    with subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for line in process.stdout or ():
            lines.append((time.monotonic() - start, line.rstrip()))
    if process.returncode:
        raise SystemExit("\n".join(line for _, line in lines))
    return lines


def animated(line: str, output: Sequence[tuple[float, str]]) -> str:
    """Return a terminal as SVG in which the lines of a command appear one after the other, with shortened pauses."""
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=80, file=io.StringIO(), color_system="truecolor", legacy_windows=False)
    shown, at, before = [], 0.0, 0.0
    for moment, text in [(0.0, Text(f"$ inat-ft {line}", "bold")), *((moment, Text(text)) for moment, text in output)]:
        at, before = at + min(moment - before, _LONGEST_PAUSE_S), moment
        shown += [at] * max(1, len(text.wrap(console, console.width)))
        console.print(text)
    svg = console.export_svg(title="", unique_id="t")
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)  # fonts from another server
    rules = [f'[clip-path="url(#t-line-{row})"] {{ animation-delay: {at:.2f}s }}' for row, at in enumerate(shown)]
    style = (
        "@keyframes t-show { from { opacity: 0 } }\n.t-matrix text { animation: t-show 1ms backwards }\n"
        f"{chr(10).join(rules)}\n@media (prefers-reduced-motion: reduce) {{ .t-matrix text {{ animation: none }} }}\n"
    )
    return svg.replace("</style>", f"{style}</style>", 1)


def picture(folder: Path, part: Part, out: Path) -> None:
    """Write a screenshot of a page, or a figure, as a PNG with few colors."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as temporary:
        file = folder / part.file
        if file.suffix == ".html":
            file = screenshot(file, Path(temporary), part)
        with Image.open(file) as image:
            whole = image.convert("RGB")
        upper = whole.crop((0, 0, whole.width, part.height or whole.height))
        upper.quantize(_COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(out, optimize=True)


def screenshot(page: Path, temporary: Path, part: Part) -> Path:
    """Take a screenshot with a browser that has no profile and makes no requests."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no browser found: install Chromium or Chrome")
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", f"--user-data-dir={temporary / 'profile'}"]
    flags += [f"--window-size={part.width},{part.height}", f"--screenshot={temporary / 'page.png'}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if part.dark else []
    subprocess.run([browser, *flags, page.as_uri()], env=environment, capture_output=True, check=True, timeout=120)
    return temporary / "page.png"


if __name__ == "__main__":
    main()
