"""Greedy soup: the mean of networks with the same initialization (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from inat_ft_sweeps.selection import read_run
from inat_ft_sweeps.study import Sweep
from torch import Tensor

from inat_ft.cache.frozen_prefix import IDENTITY, PrefixCache
from inat_ft.cache.loaders import subset_images
from inat_ft.cache.packed_images import Pixels
from inat_ft.config import RunConfig
from inat_ft.data.batches import Batches, ImageInput, StoredRows
from inat_ft.data.manifest import Manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.engine.device import Compute, choose_compute
from inat_ft.engine.loops import evaluate
from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.predict import InferenceConfig, LoadedModel, changes_allowed, load_model, manifest_of
from inat_ft.evaluation.predictions import from_probabilities, write_predictions
from inat_ft.metrics import Predictions
from inat_ft.models.net import Net
from inat_ft.models.weights import read_state, save_model
from inat_ft.progress import ProgressFn, ignore_progress, no_progress
from inat_ft.records import RunRecord, write_record, write_text
from inat_ft.settings import dump_config, portable
from inat_ft.setup import split_info
from inat_ft.threads import decoders

_BATCH = 64
State = dict[str, Tensor]


@dataclass(frozen=True)
class Soup:
    """A new soup, written as a run."""

    record: RunRecord
    directory: Path
    members: list[str]
    """Names of its runs, in the order in which they were added."""
    best_alone: float
    """Validation accuracy of the best run alone, in the same precision."""
    num_candidates: int
    """Number of runs with the same initialization."""
    excluded: dict[str, str]
    """Why each of the other runs could not be added."""


def make_soup(
    sweep: Sweep,
    runs: Path,
    cache: Path,
    name: str | None = None,
    progress: ProgressFn = ignore_progress,
) -> Soup:
    """Average the weights of a sweep's runs, the best first, each if validation accuracy does not fall.

    The soup is written as a run. Raises RecordError if fewer than two runs have the same initialization, UsageError if a
    run of that name exists.
    """
    directory = runs / (name or f"{sweep.id}-soup")
    if directory.exists():
        raise UsageError(f"the run {directory} exists already", "choose another --name")
    records, excluded = find_candidates(sweep)
    folders = [sweep.runs / record.name for record in records]
    compute = Compute(choose_compute("auto", "auto").device, "fp32")
    with ExitStack() as stack:
        files = [folder / "model.safetensors" for folder in folders]
        evaluator = _Evaluator(stack, files, records[0], folders[0], cache, compute)
        chosen, alone = _select(evaluator, progress)
        members = [records[place] for place in chosen]
        record = _write(directory, sweep, evaluator, members, len(records), alone)
    return Soup(record, directory, [member.name for member in members], alone, len(records), excluded)


def find_candidates(sweep: Sweep) -> tuple[list[RunRecord], dict[str, str]]:
    """Return the runs with the same initialization as the best, the best first, and why the others are excluded.

    Only networks that started from the same weights can be averaged. That includes the random head, which the seed decides.
    """
    found, excluded = [], {}
    for trial in sweep.best():
        record = read_run(sweep, trial)
        if record is None or not (sweep.runs / trial.run / "model.safetensors").is_file():
            excluded[trial.run] = "its run is not on this machine"
        else:
            found.append(record.model_copy(update={"name": trial.run}))
    found.sort(key=lambda record: -(record.val_accuracy or 0.0))
    start = _initialization(found[0]) if found else {}
    for record in found:
        other = [part for part, value in _initialization(record).items() if value != start[part]]
        if other:
            excluded[record.name] = f"different initialization: its {other[0]} differs from that of {found[0].name}"
    candidates = [record for record in found if record.name not in excluded]
    if len(candidates) < 2:
        raise RecordError(
            f"no two runs of sweep {sweep.id} have the same initialization"
            + "".join(f"\n{run}: {reason}" for run, reason in list(excluded.items())[:3]),
            "a soup needs complete runs with the same backbone, weights and seed",
        )
    return candidates, excluded


def _initialization(record: RunRecord) -> dict[str, Any]:
    """Return what decides the initial weights of a run, and its validation images."""
    model = {key: value for key, value in record.config.get("model", {}).items() if key not in ("dropout", "weights")}
    return {
        "backbone": model,
        "seed (and so its random head)": record.seed,
        "pretrained weights": record.weights_sha256,
        "split": record.split and record.split.fingerprint,
        "input": record.preprocess,
    }


class _Evaluator:
    """Computes the validation accuracy of averages of the candidates; the stages that all have in common run once."""

    def __init__(
        self, stack: ExitStack, files: Sequence[Path], record: RunRecord, folder: Path, cache: Path, compute: Compute
    ) -> None:
        self.files, self.compute = files, compute
        self.trained: LoadedModel = load_model(files[0], InferenceConfig(), compute)
        self.net: Net = self.trained.net
        self.manifest: Manifest = manifest_of(record, folder)
        self.rows = self.manifest.rows("val")
        pool = stack.enter_context(decoders())
        hashes = verify_hashes(self.manifest, ("val",), cache, changes_allowed(record), no_progress)
        self.hashes = [hashes[row] for row in self.rows]
        prefix_cache = PrefixCache(self.net, self.trained.preprocess, compute, cache)
        pixels = subset_images(self.manifest, "val", hashes, prefix_cache, pool)
        self.mixed, self.batches = self._batches(pixels, prefix_cache)

    def _batches(self, pixels: Pixels, kept: PrefixCache) -> tuple[set[str], Batches]:
        """Return the names of the tensors that differ among the candidates, and the input of their first stage."""
        names = [list(stage.state_dict()) for stage in self.net.stages.values()]
        first = read_state(self.files[0])
        mixed: set[str] = set()
        for file in self.files[1:]:
            state = read_state(file)
            mixed |= {name for name in first.keys() - mixed if not torch.equal(state[name], first[name])}
        cut = next((place for place, inside in enumerate(names) if mixed & set(inside)), len(names))
        estimate = kept.estimate(cut, 0, len(pixels), len(self.files), 0)
        if cut and estimate.pays:
            prefix_forward = kept.prefix_forward(cut, [], lambda: torch.empty(0))
            source = kept.rows(prefix_forward, pixels, IDENTITY, ignore_progress)
            return mixed, Batches(source, pixels.labels, _BATCH, kept.activation(cut, pixels.size), cut)
        prepare = ImageInput(self.trained.preprocess.mean, self.trained.preprocess.std)
        packed = StoredRows(*pixels.store.read(pixels.hashes)) if pixels.is_packed() else pixels.files()
        return mixed, Batches(packed, pixels.labels, _BATCH, prepare)

    def logits(self) -> Tensor:
        """Return the logits of the validation images, `[N, C]`, for the loaded weights."""
        return evaluate(self.net, self.batches, self.compute)[2]

    def accuracy(self, state: State) -> float:
        """Load these weights; return their validation accuracy."""
        self.net.load_original_state_dict(state, "the soup")
        return float((self.logits().argmax(1) == self.batches.labels).cpu().double().mean())


def _select(evaluator: _Evaluator, progress: ProgressFn) -> tuple[list[int], float]:
    """Load the soup into the evaluator's network; return the indices of its members and the first one's accuracy.

    Sums are in float64, so that the order of the members does not matter. Integer counters are those of the first.
    """
    first = read_state(evaluator.files[0])
    total = {name: first[name].double() for name in evaluator.mixed if first[name].is_floating_point()}

    def mean(sums: State, number: int) -> State:
        return first | {name: (tensor / number).to(first[name].dtype) for name, tensor in sums.items()}

    alone = best = evaluator.accuracy(first)
    chosen = [0]
    for place, file in enumerate(evaluator.files[1:], 1):
        progress(place, len(evaluator.files))
        state = read_state(file)
        summed = {name: tensor + state[name] for name, tensor in total.items()}
        accuracy = evaluator.accuracy(mean(summed, len(chosen) + 1))
        if accuracy >= best:
            total, best = summed, accuracy
            chosen.append(place)
    progress(len(evaluator.files), len(evaluator.files))
    evaluator.net.load_original_state_dict(mean(total, len(chosen)), "the soup")
    return chosen, alone


def _write(
    directory: Path,
    sweep: Sweep,
    evaluator: _Evaluator,
    members: Sequence[RunRecord],
    num_candidates: int,
    alone: float,
) -> RunRecord:
    """Write the soup as a run, with the configuration of its best member."""
    best, predictions = members[0], _predict(evaluator)
    accuracy = float(predictions.correct.mean())
    config = RunConfig.model_validate({**best.config, "name": directory.name})
    write_predictions(directory / "predictions-val.csv", predictions)
    write_text(directory / "config.yaml", dump_config(portable(config, directory)))
    save_model(
        directory / "model.safetensors", evaluator.net, config, evaluator.trained.preprocess, evaluator.trained.classes
    )
    counts = [member.parameters for member in members if member.parameters]
    names = ", ".join(member.name for member in members)
    record = best.model_copy(
        update={
            "name": directory.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "val_accuracy": accuracy,
            "config": config.model_dump(mode="json"),
            "split": split_info(evaluator.manifest, directory),
            "history": [],
            "best_epoch": None,
            "stopped_early": False,
            "parameters": max(counts, key=lambda parameters: parameters.trained, default=None),
            "seconds": {"total": round(sum(member.seconds.get("total", 0.0) for member in members), 3)},
            "images_per_s": None,
            "predictions": {"val": "predictions-val.csv"},
            "val": None,
            "test": None,
            "test_accuracy": None,
            "num_test": None,
            "notes": [
                f"greedy soup: the mean of {len(members)} of {num_candidates} runs of sweep {sweep.id} ({names})",
                f"the validation images chose its members, so its validation accuracy of {accuracy:.4f} is optimistically "
                f"biased; its best member has {alone:.4f}",
            ],
        }
    )
    write_record(record, directory / "record.json")
    return record


def _predict(evaluator: _Evaluator) -> Predictions:
    """Return the predictions of the soup on the validation images."""
    manifest, rows = evaluator.manifest, evaluator.rows
    return from_probabilities(
        evaluator.trained.classes,
        [manifest.paths[row] for row in rows],
        evaluator.hashes,
        manifest.labels[rows],
        evaluator.logits().cpu().double().softmax(1).numpy(),
    )
