"""Every built-in strategy on few real images, at equal epochs: which is best when, and what it costs.

    python -m tests.benchmarks.strategies [--sizes 5 20 100] [--seeds 3] [--epochs 5] [--json FILE]

scikit-learn's digits, `efficientnet_lite0` with its ImageNet weights, 32 x 32 pixels. For each size and seed so many
training images a class are drawn and a fifth of them validates; every strategy gets the same. Each trains once with every
learning rate of the list, and the one with the best validation accuracy counts (of equals the lower rate). The accuracy is
that on all 360 reserved test images; its interval is Student's over the seeds, so it holds the luck of the draw.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from inat_ft_datasets.digits import write_digits
from scipy.stats import t

from inat_ft.data.split import SplitOptions, split_images
from inat_ft.evaluation.predict import InferenceConfig, load_model, predict_subset
from inat_ft.registry import STRATEGIES, plugins
from inat_ft.settings import load_config
from inat_ft.training import Directories, train

RATES = (1e-4, 1e-3, 1e-2)


def split(digits: Path, work: Path, each: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["path,label,subset"]
    for label in sorted((digits / "train").iterdir()):
        files = sorted(label.iterdir())
        chosen = [files[number] for number in rng.choice(len(files), each, replace=False)]
        lines += [f"{file.relative_to(digits)},{label.name}," for file in chosen]
    lines += [f"{file.relative_to(digits)},{file.parent.name},test" for file in sorted((digits / "val").glob("*/*"))]
    name = f"digits-{each}-{seed}.csv"
    (digits / name).write_text("\n".join(lines) + "\n")
    return split_images(digits / name, work / name, SplitOptions(seed=seed, near=False, workers=2)).manifest.path


def measure(manifest: Path, work: Path, mode: str, seed: int, epochs: int) -> dict[str, object]:
    best = None
    for lr in RATES:
        settings = {
            "data.split": str(manifest), "data.image_size": 32, "model.backbone": "efficientnet_lite0",
            "strategy.name": mode, "optim.epochs": epochs, "optim.lr": lr, "optim.batch_size": 32, "stop.patience": 0,
            "seed": seed,
        }  # fmt: skip
        started = time.perf_counter()
        record, directory = train(load_config(None, list(settings.items())), Directories(work / "runs", work / "cache"))
        seconds = time.perf_counter() - started
        if best is None or (record.val_accuracy or 0) > (best[0].val_accuracy or 0):
            best = record, directory, seconds, lr
    assert best is not None
    record, directory, seconds, lr = best
    trained = load_model(directory / "model.safetensors", InferenceConfig())
    predictions, _ = predict_subset(trained, record, directory, "test")
    return {
        "mode": mode,
        "seed": seed,
        "lr": lr,
        "accuracy": float(predictions.correct.mean()),
        "seconds": seconds,
        "trained": record.parameters.trained if record.parameters else None,
    }


def table(rows: list[dict[str, object]], sizes: list[int]) -> str:
    found = defaultdict(list)
    for row in rows:
        found[row["mode"], row["each"]].append(row)
    modes = sorted(
        {str(row["mode"]) for row in rows},
        key=lambda mode: -statistics.mean(row["accuracy"] for row in found[mode, sizes[-1]]),
    )
    heads = [f"{size} a class" for size in sizes]
    lines = [f"| strategy | {' | '.join(heads)} | trained | seconds |", "|---" * (len(sizes) + 3) + "|"]
    for mode in modes:
        cells = []
        for size in sizes:
            values = [row["accuracy"] for row in found[mode, size]]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            half = t.ppf(0.975, len(values) - 1) * spread / len(values) ** 0.5
            cells.append(f"{statistics.mean(values):.3f} ± {half:.3f}")
        last = found[mode, sizes[-1]]
        seconds = statistics.median(row["seconds"] for row in last)
        lines.append(f"| `{mode}` | {' | '.join(cells)} | {last[0]['trained']:,} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="*", default=[5, 20, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--modes", nargs="*", default=sorted(plugins(STRATEGIES)))
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        digits = write_digits(work / "digits")
        for each in chosen.sizes:
            for seed in range(chosen.seeds):
                manifest = split(digits, work, each, seed)
                for mode in chosen.modes:
                    rows.append({"each": each, **measure(manifest, work, mode, seed, chosen.epochs)})
                    print(json.dumps(rows[-1]), flush=True)
    print(table(rows, chosen.sizes))
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
