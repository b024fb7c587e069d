"""The public functions: audit a split, measure a learning curve, and suggest photographs to label; each writes its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_ft.api.train import RunLike, as_overrides
from inat_ft.config import RunConfig
from inat_ft.data.manifest import find_manifest
from inat_ft.errors import UsageError
from inat_ft.paths import cache_folder
from inat_ft.settings import load_config
from inat_ft.setup import TrainCallbacks
from inat_ft.text import pluralize
from inat_ft_insights import audit as auditing
from inat_ft_insights import suggest as suggesting
from inat_ft_insights.audit_page import write_page, write_verdicts
from inat_ft_insights.curve_files import draw_curve, write_points
from inat_ft_insights.learning_curve import LearningCurve
from inat_ft_insights.learning_curve import learning_curve as head_curve
from inat_ft_insights.suggest_files import write_contact_sheet, write_suggestions
from inat_ft_insights.trained_curve import trained_curve

PathLike = str | os.PathLike[str]
_SUBSETS = ("train", "val", "test")
_HEAD, _TRAINED = (10, 9), (3, 5)
"""Default numbers of draws and of sizes: for heads on frozen features, and for other strategies."""


@dataclass(frozen=True)
class AuditResult(auditing.Audit):
    """An audit with its files.

    found = inat_ft.audit("splits/photos.csv")
    found.suspects[0].path, found.summary
    """

    page: Path
    """HTML page with the images, the worst first."""
    csv: Path
    """One row per suspect, with the column `verdict` to fill in."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft audit --json` prints it."""
        return {**super().to_dict(), "page": self.page.as_posix(), "csv": self.csv.as_posix()}


@dataclass(frozen=True)
class LearningCurveResult(LearningCurve):
    """A learning curve with its files.

    curve = inat_ft.learning_curve(split="splits/photos.csv", target=0.95)
    curve.needed.value, curve.summary
    """

    csv: Path
    """One row per point."""
    picture: Path
    """The curve as PNG; an SVG is next to it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft learning-curve --json` prints it."""
        return {**super().to_dict(), "csv": self.csv.as_posix(), "picture": self.picture.as_posix()}


@dataclass(frozen=True)
class SuggestResult(suggesting.Suggestions):
    """Photographs to label, with the files.

    found = inat_ft.suggest("runs/resnet50-head-1", "new-photos", count=50)
    [each.path for each in found.chosen], found.summary
    """

    page: Path
    """HTML page with the photographs."""
    csv: Path
    """One row per photograph, with the column `label` to fill in."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as `inat-ft suggest --json` prints it."""
        return {**super().to_dict(), "page": self.page.as_posix(), "csv": self.csv.as_posix()}


def audit(
    split: PathLike,
    subsets: Sequence[str] = ("train", "val"),
    *,
    limit: int = 200,
    out: PathLike | None = None,
    config: PathLike | RunConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    cache_dir: PathLike | None = None,
    callbacks: TrainCallbacks | None = None,
    **options: Any,
) -> AuditResult:
    """Find suspected label errors, outliers and ambiguous images, and write them as a page and a CSV.

        found = inat_ft.audit("splits/photos.csv", backbone="resnet18")
        print(found.summary)

    Fill in the column `verdict` of the CSV, and pass it to `inat_ft.split(corrections=...)`.

    Args:
        split: the manifest.
        subsets: the images to audit. To audit test images, name "test".
        limit: number of images of each kind on the page.
        out: folder for the files. Default: `insights/audit-NAME`.
        config: a YAML file of settings, or a RunConfig. Options and settings override it.
        settings: further keys, by their dotted names, such as `{"data.image_size": 160}`.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages and progress.
        **options: the options of `inat-ft train` with underscores, such as `backbone`, which choose the features.

    Raises:
        UsageError: the manifest is missing, or a subset is unknown or has no images.
        DataError: an image is missing or has changed since the split.
        WeightsError: pretrained weights cannot be loaded.
    """
    subsets = (subsets,) if isinstance(subsets, str) else subsets
    if unknown := [subset for subset in subsets if subset not in _SUBSETS]:
        raise UsageError(f"unknown subset '{unknown[0]}'", "choose train, val or test")
    if not subsets:
        raise UsageError("no subset to audit", "use the default: leave out subsets")
    if limit < 1:
        raise UsageError(f"limit {limit} is not positive", "use the default: leave out limit")
    heard, folder = callbacks or TrainCallbacks(), _folder(out, f"audit-{Path(split).stem}")
    resolved = load_config(config, [("data.split", os.fspath(split)), *as_overrides(options, settings)])
    found = auditing.audit(resolved, cache_folder(cache_dir), subsets, heard.progress)
    if found.estimated_errors > len(found.ranking) / 2:
        heard.log(
            f"warning: the classifier agrees with only {found.accuracy:.0%} of the labels, so most suspects are probably not "
            "errors: use another network (--backbone) or more images of each class"
        )
    page, csv = folder / "audit.html", folder / "audit.csv"
    if kept := write_verdicts(found, csv):
        heard.log(f"{pluralize(kept, 'verdict')} of the existing {csv} kept")
    write_page(found, page, csv, limit)
    return AuditResult(**vars(found), page=page, csv=csv)


def learning_curve(
    run: RunLike | None = None,
    *,
    mode: str = "head",
    target: float | None = None,
    draws: int | None = None,
    sizes: int | None = None,
    out: PathLike | None = None,
    config: PathLike | RunConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    cache_dir: PathLike | None = None,
    callbacks: TrainCallbacks | None = None,
    **options: Any,
) -> LearningCurveResult:
    """Measure accuracy against images per class, extrapolate it, and write the points and a picture.

        curve = inat_ft.learning_curve(split="splits/photos.csv", target=0.95)
        print(curve.summary)

    Args:
        run: a run whose network, images and settings are used. Its trained weights are not used.
        mode: the strategy. `head` fits heads to frozen features, which takes seconds. Any other strategy is trained once for
            each draw and size; finished runs are kept in the folder, and the same call continues.
        target: accuracy, 0 to 1, whose number of images per class is estimated.
        draws: number of random draws of the training subsets, at least 2. Default: 10; 3 for other strategies than `head`.
        sizes: number of sizes of the subsets, 2 to 20. Default: 9; 5 for other strategies than `head`.
        out: folder for the files. Default: `insights/learning-curve-NAME`, followed by the strategy unless it is `head`.
        config: a YAML file of settings, or a RunConfig. Options and settings override it.
        settings: further keys, by their dotted names, such as `{"data.image_size": 160}`.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages, progress and epochs.
        **options: the options of `inat-ft train` with underscores, such as `split`, `backbone` and `epochs`.

    Raises:
        UsageError: the run, the manifest or a value cannot be used.
        DataError: the classes have too few images, or an image is missing or has changed since the split.
        WeightsError: pretrained weights cannot be loaded.
        BusyError: another process uses the folder.
    """
    heard, cache = callbacks or TrainCallbacks(), cache_folder(cache_dir)
    defaults = _HEAD if mode == "head" else _TRAINED
    chosen_draws = _number("draws", draws, defaults[0], 1000)
    chosen_sizes = _number("sizes", sizes, defaults[1], 20)
    if target is not None and not 0 < target < 1:
        raise UsageError(f"target {target:g} is not between 0 and 1", "for 95%, pass 0.95")
    resolved = load_config(run_settings(run, config), [("strategy.name", mode), *as_overrides(options, settings)])
    require_mode(resolved, mode)
    split = resolved.data.split or find_manifest().as_posix()
    resolved = load_config(resolved, [("data.split", split)])
    folder = _folder(out, f"learning-curve-{Path(split).stem}" + (f"-{mode}" if mode != "head" else ""))
    if mode == "head":
        found = head_curve(resolved, cache, chosen_draws, chosen_sizes, target, heard.progress)
    else:
        found = trained_curve(resolved, folder, cache, chosen_draws, chosen_sizes, target, heard)
    if found.law is None:
        heard.log("warning: fewer than four sizes are clearly better than chance, so the curve is not extrapolated")
    points = folder / "learning-curve.csv"
    write_points(found, points)
    return LearningCurveResult(**vars(found), csv=points, picture=draw_curve(found, folder / "learning-curve"))


def suggest(
    run: RunLike,
    photos: PathLike,
    count: int = 100,
    *,
    out: PathLike | None = None,
    cache_dir: PathLike | None = None,
    callbacks: TrainCallbacks | None = None,
) -> SuggestResult:
    """Choose unlabeled photographs to label next, and write them as a page and a CSV.

        found = inat_ft.suggest("runs/resnet50-head-1", "new-photos", count=50)
        print(found.summary)

    Args:
        run: a run whose network and split are used. Its trained weights are not used.
        photos: folder of photographs. Those that are already in the split are skipped.
        count: number of photographs to choose.
        out: folder for the files. Default: `insights/suggest-NAME`.
        cache_dir: folder for caches. Default: INAT_FT_CACHE_DIR, else the platform's cache folder.
        callbacks: functions that receive messages and progress.

    Raises:
        UsageError: the run or the folder is missing, or the folder has no new photographs.
        DataError: an image of the split is missing or has changed.
        WeightsError: pretrained weights cannot be loaded.
    """
    heard, folder = callbacks or TrainCallbacks(), Path(photos)
    config = load_config(run_settings(run, None))
    found = suggesting.suggest(config, folder, cache_folder(cache_dir), count, heard.progress)
    for path, reason in found.skipped.items():
        heard.log(f"warning: {path}: {reason}; skipped")
    files = _folder(out, f"suggest-{folder.resolve().name}")
    page, csv = files / "suggest.html", files / "suggest.csv"
    write_suggestions(found, csv)
    write_contact_sheet(found, page, folder)
    return SuggestResult(**vars(found), page=page, csv=csv)


def run_settings(run: RunLike | None, config: PathLike | RunConfig | None) -> PathLike | RunConfig | None:
    """Return the settings of a run, or those given. Raises UsageError if both are given, or if the run has none."""
    if run is None:
        return config
    if config is not None:
        raise UsageError("a run and --config both give the settings", "remove one of them")
    path = Path(run)
    if not path.exists():
        raise UsageError(f"run not found: {path}", "pass the folder of a run, such as runs/NAME")
    file = (path if path.is_dir() else path.parent) / "config.yaml"
    if not file.is_file():
        raise UsageError(f"{path} is not a run: it has no config.yaml", "pass the folder of a run, such as runs/NAME")
    return file


def require_mode(config: RunConfig, mode: str) -> None:
    """Raise UsageError if the settings name another strategy than `mode`."""
    if config.strategy.name != mode:
        raise UsageError(f"strategy.name is '{config.strategy.name}', but mode is '{mode}'", "pass --mode only")


def _folder(out: PathLike | None, name: str) -> Path:
    return Path("insights") / name if out is None else Path(out)


def _number(name: str, value: int | None, default: int, most: int) -> int:
    if value is not None and not 2 <= value <= most:
        raise UsageError(f"{name} {value} is not from 2 to {most:,}", f"use the default: leave out {name}")
    return default if value is None else value
