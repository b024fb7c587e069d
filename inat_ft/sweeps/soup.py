"""A greedy soup of a sweep's runs: the mean of networks that share a start (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
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
from inat_ft.evaluation.predict import LoadedModel, changes_allowed, load_trained_model, manifest_of
from inat_ft.evaluation.predictions import from_probabilities, write_predictions
from inat_ft.models.net import Net
from inat_ft.models.weights import read_state, save_model
from inat_ft.progress import ProgressFn, ignore_progress, no_progress
from inat_ft.records import RunRecord, write_record, write_text
from inat_ft.settings import dump_config, portable
from inat_ft.sweeps.selection import read_run
from inat_ft.sweeps.study import Sweep
from inat_ft.threads import decoders
from inat_ft.training import split_info

_BATCH = 64
State = dict[str, Tensor]


@dataclass(frozen=True)
class Soup:
    """A soup that was made."""

    record: RunRecord
    directory: Path
    members: list[str]
    """Names of the runs that are in it, in the order in which they were added."""
    alone: float
    """Validation accuracy of the best run alone, measured as the soup's was."""
    tried: int
    """How many runs share the start and so could be in it."""
    left_out: dict[str, str]
    """Why the other runs could not."""


def make_soup(
    sweep: Sweep, runs: Path, cache: Path, name: str | None = None, progress: ProgressFn = ignore_progress
) -> Soup:
    """Mix the runs of a sweep, the best first, each if validation accuracy does not fall, into a run directory.

    Raises RecordError when fewer than two runs share a start, UsageError when there is a run of that name already.
    """
    directory = runs / (name or f"{sweep.id}-soup")
    if directory.exists():
        raise UsageError(f"the run {directory} exists already", "choose another --name")
    records, left_out = find_candidates(sweep)
    folders = [sweep.runs / record.name for record in records]
    compute = Compute(choose_compute("auto", "auto").device, "fp32")
    with ExitStack() as stack:
        judge = _Judge(
            stack, [folder / "model.safetensors" for folder in folders], records[0], folders[0], cache, compute
        )
        chosen, alone = _mix(judge, progress)
        members = [records[place] for place in chosen]
        record = _write(directory, sweep, judge, members, len(records), alone)
    return Soup(record, directory, [member.name for member in members], alone, len(records), left_out)


def find_candidates(sweep: Sweep) -> tuple[list[RunRecord], dict[str, str]]:
    """The runs that share the best one's start, the best first, and why each of the others is left out.

    A mean of networks means something only where all of them came from the same weights, the random head included: the
    seed decides that.
    """
    found, left_out = [], {}
    for trial in sweep.best():
        record = read_run(sweep, trial)
        if record is None or not (sweep.runs / trial.run / "model.safetensors").is_file():
            left_out[trial.run] = "its run is not on this machine"
        else:
            found.append(record.model_copy(update={"name": trial.run}))
    found.sort(key=lambda record: -(record.val_accuracy or 0.0))
    start = _start(found[0]) if found else {}
    for record in found:
        other = [part for part, value in _start(record).items() if value != start[part]]
        if other:
            left_out[record.name] = f"it started elsewhere: another {other[0]} than {found[0].name}"
    candidates = [record for record in found if record.name not in left_out]
    if len(candidates) < 2:
        raise RecordError(
            f"no two runs of sweep {sweep.id} share a start"
            + "".join(f"\n{run}: {why}" for run, why in list(left_out.items())[:3]),
            "a soup needs complete runs with the same backbone, weights and seed",
        )
    return candidates, left_out


def _start(record: RunRecord) -> dict[str, Any]:
    """All that decides the weights that a run began with, and the images that judge it."""
    model = {key: value for key, value in record.config.get("model", {}).items() if key not in ("dropout", "weights")}
    return {
        "backbone": model,
        "seed (and so another random head)": record.seed,
        "set of weights": record.weights_sha256,
        "split": record.split and record.split.fingerprint,
        "input": record.preprocess,
    }


class _Judge:
    """Says how many validation images a mixture of the candidates gets right.

    What the candidates have in common, their first stages, is computed once.
    """

    def __init__(
        self, stack: ExitStack, files: Sequence[Path], record: RunRecord, folder: Path, cache: Path, compute: Compute
    ) -> None:
        self.files, self.compute = files, compute
        self.trained: LoadedModel = load_trained_model(files[0], compute)
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
        """The names of the tensors that differ among the candidates, and what the first stage with such a one takes."""
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
        """Of the validation images, `[N, C]`, from the weights that are loaded."""
        return evaluate(self.net, self.batches, self.compute)[2]

    def accuracy(self, state: State) -> float:
        """Load these weights; returns the share of the validation images that are right."""
        self.net.load_original_state_dict(state, "the soup")
        return float((self.logits().argmax(1) == self.batches.labels).double().mean())


def _mix(judge: _Judge, progress: ProgressFn) -> tuple[list[int], float]:
    """Load the soup into the judge's network; returns the places of its members and the first one's accuracy.

    Sums are kept in float64, so that the order of the members does not show; counters are those of the first.
    """
    first = read_state(judge.files[0])
    total = {name: first[name].double() for name in judge.mixed if first[name].is_floating_point()}

    def mean(sums: State, number: int) -> State:
        return first | {name: (tensor / number).to(first[name].dtype) for name, tensor in sums.items()}

    alone = best = judge.accuracy(first)
    chosen = [0]
    for place, file in enumerate(judge.files[1:], 1):
        progress(place, len(judge.files))
        state = read_state(file)
        with_it = {name: tensor + state[name] for name, tensor in total.items()}
        accuracy = judge.accuracy(mean(with_it, len(chosen) + 1))
        if accuracy >= best:
            total, best = with_it, accuracy
            chosen.append(place)
    progress(len(judge.files), len(judge.files))
    judge.net.load_original_state_dict(mean(total, len(chosen)), "the soup")
    return chosen, alone


def _write(
    directory: Path, sweep: Sweep, judge: _Judge, members: Sequence[RunRecord], tried: int, alone: float
) -> RunRecord:
    """The soup as training would leave it. Its configuration is that of its best member."""
    manifest, rows, best = judge.manifest, judge.rows, members[0]
    predictions = from_probabilities(
        judge.trained.classes,
        [manifest.paths[row] for row in rows],
        judge.hashes,
        manifest.labels[rows],
        judge.logits().double().softmax(1).cpu().numpy(),
    )
    accuracy = float(predictions.correct.mean())
    config = RunConfig.model_validate({**best.config, "name": directory.name})
    write_predictions(directory / "predictions-val.csv", predictions)
    write_text(directory / "config.yaml", dump_config(portable(config, directory)))
    save_model(directory / "model.safetensors", judge.net, config, judge.trained.preprocess, judge.trained.classes)
    trained = [member.parameters for member in members if member.parameters]
    names = ", ".join(member.name for member in members)
    record = best.model_copy(
        update={
            "name": directory.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "val_accuracy": accuracy,
            "config": config.model_dump(mode="json"),
            "split": split_info(manifest, directory),
            "history": [],
            "best_epoch": None,
            "stopped_early": False,
            "parameters": max(trained, key=lambda parameters: parameters.trained, default=None),
            "seconds": {"total": round(sum(member.seconds.get("total", 0.0) for member in members), 3)},
            "images_per_s": None,
            "predictions": {"val": "predictions-val.csv"},
            "val": None,
            "test": None,
            "test_accuracy": None,
            "num_test": None,
            "notes": [
                f"greedy soup: the mean of {len(members)} of {tried} runs of sweep {sweep.id} ({names})",
                f"its members were chosen on the validation images, where it has {accuracy:.4f} and its best member "
                f"{alone:.4f}: a little too good",
            ],
        }
    )
    write_record(record, directory / "record.json")
    return record
