"""Which of several classifiers is better, by how much, and how certain that is. Reads records and predictions only.

The columns of a comparison are declared once for the terminal, JSON and HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Generic, TypeVar

from inat_ft.data.manifest import Manifest
from inat_ft.errors import UsageError
from inat_ft.evaluation.candidates import Candidate, Caveat, Reason, read_candidates
from inat_ft.evaluation.pairwise import PairwiseResult, compare_pairs, summarize
from inat_ft.metrics.base import Metric, Predictions, get_metric
from inat_ft.records import RunRecord

T = TypeVar("T", Candidate, PairwiseResult)
_IGNORED = ("name", "seed", "track", "compute", "data.root")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: its key in JSON, its title, its value, and the text of a value that is not None.

    title: `{metric}`, `{reference}` and `{tested}` are filled in. numeric: aligned to the right. rank: columns of higher rank
    are left out first when a terminal is narrow; 0 is never left out.
    """

    key: str
    title: str
    value: Callable[[T], Any]
    text: Callable[[Any], str] = str
    missing: str = ""
    numeric: bool = True
    rank: int = 0

    def cell(self, row: T) -> str:
        value = self.value(row)
        return self.missing if value is None else self.text(value)


def interval_text(values: tuple[float, float]) -> str:
    return f"{values[0]:.4f} to {values[1]:.4f}"


def score_interval(candidate: Candidate) -> tuple[float, float] | None:
    score = candidate.score
    return None if score is None or score.low is None or score.high is None else (score.low, score.high)


def _score_text(values: tuple[float, float | None]) -> str:
    return f"{values[0]:.4f}" if values[1] is None else f"{values[0]:.4f} ± {values[1]:.4f}"


CANDIDATE_COLUMNS: tuple[Column[Candidate], ...] = (
    Column("name", "name", lambda c: c.name, numeric=False),
    Column("score", "{metric}", lambda c: c.score and (c.score.value, c.std), _score_text, UNKNOWN),
    Column("interval", "95% interval", score_interval, interval_text, UNKNOWN, numeric=False),
    Column("num_test", "{tested}", lambda c: c.num_test, "{:,}".format, UNKNOWN, rank=1),
    Column("trained_parameters", "trained", lambda c: c.record.parameters and c.record.parameters.trained, "{:,}".format,
           rank=2),
    Column("epochs", "epochs", lambda c: len(c.record.history) or None, rank=4),
    Column("seconds", "time", lambda c: c.record.seconds.get("total"), "{:,.1f} s".format, rank=3),
    Column("images_per_s", "images/s", lambda c: c.record.images_per_s, "{:,.0f}".format, rank=7),
    Column("peak_memory_mib", "memory", lambda c: c.record.peak_memory_mib, "{:,.0f} MiB".format, rank=6),
    Column("test_evaluations", "test evaluations", lambda c: c.record.test and c.record.test.look, rank=5),
)  # fmt: skip


def other_minus_reference(pair: PairwiseResult) -> tuple[float, float, float] | None:
    found = pair.difference
    return None if found is None else (0.0 - found.value, 0.0 - found.high, 0.0 - found.low)


def _result(pair: PairwiseResult) -> str:
    if pair.obstacle:
        return pair.obstacle
    if pair.is_significant:
        return "significant" + (", within the margin" if pair.equivalent else "")
    return "equivalent" if pair.equivalent else "not significantly different"


PAIR_COLUMNS: tuple[Column[PairwiseResult], ...] = (
    Column("second", "compared with {reference}", lambda p: p.second, numeric=False),
    Column("difference", "difference", other_minus_reference, lambda d: f"{d[0]:+.4f}", UNKNOWN),
    Column("interval", "95% interval", other_minus_reference, lambda d: f"{d[1]:+.4f} to {d[2]:+.4f}", UNKNOWN,
           numeric=False),
    Column("p_holm", "p (Holm)", lambda p: p.p_holm, "{:.2g}".format),
    Column("only_first", "only {reference} correct", lambda p: p.n_first_only, "{:,}".format, rank=2),
    Column("only_second", "only the other correct", lambda p: p.n_second_only, "{:,}".format, rank=3),
    Column("agreement", "agreement", lambda p: p.agreement, "{:.1%}".format, rank=1),
    Column("result", "result", _result, numeric=False),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A comparison: candidates by score, the reference against each other one, and what limits the result, in sentences."""

    scored_by: Metric
    candidates: list[Candidate]
    pairs: list[PairwiseResult]
    remarks: list[str]
    margin: float | None = None
    tested: ClassVar[str] = "test images"
    _file: ClassVar[str] = "record.json"

    @property
    def metric(self) -> str:
        return self.scored_by.name

    @property
    def reference(self) -> str:
        """The candidate that the others are compared with: the best of those with the strongest evidence."""
        return self.pairs[0].first

    @property
    def summary(self) -> str:
        """The conclusion in a few sentences, which claim no more than the data allow."""
        return summarize(self.candidates, self.pairs, self.scored_by, self.margin)

    def improvement(self, first: Path, last: Path) -> float | None:
        """Return by how much the last record is better than the first, by their files; None when they are not comparable."""
        candidates = {file.resolve(): candidate for candidate in self.candidates for file in candidate.files}
        a, b = (candidates.get((path / self._file if path.is_dir() else path).resolve()) for path in (first, last))
        if a is None or b is None or a is b:
            return None
        (pair,) = self._pairs([a, b])
        if pair.difference is None or pair.reason is Reason.DIFFERENT_IMAGES:
            return None
        value = pair.difference.value if pair.first == b.name else -pair.difference.value
        return value if self.scored_by.higher_is_better else -value

    def _pairs(self, candidates: Sequence[Candidate]) -> list[PairwiseResult]:
        return compare_pairs(candidates, self.scored_by, None)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `inat-ft compare --json` prints it."""
        return {
            "metric": self.metric,
            "reference": self.reference,
            "sentence": self.summary,
            "entries": [
                {
                    **{column.key: column.value(candidate) for column in CANDIDATE_COLUMNS},
                    "records": [file.as_posix() for file in candidate.files],
                    "score": candidate.score.model_dump() if candidate.score else None,
                    "deviation": candidate.std,
                    "remarks": [text for _, text in candidate.caveats],
                }
                for candidate in self.candidates
            ],
            "pairs": [
                {
                    **{column.key: column.value(pair) for column in PAIR_COLUMNS},
                    "first": pair.first,
                    "difference": pair.difference.__dict__ if pair.difference else None,
                    "p": pair.p,
                    "same": pair.equivalent,
                    "reason": pair.reason,
                    "obstacle": pair.obstacle,
                    "different_images": pair.reason is Reason.DIFFERENT_IMAGES,
                    "is_real": pair.is_significant,
                    "num_groups": pair.num_groups,
                }
                for pair in self.pairs
            ],
            "remarks": self.remarks,
            "margin": self.margin,
        }


def compare(
    paths: Sequence[Path], metric: str = "accuracy", group: bool = False, margin: float | None = None
) -> Comparison:
    """Compare records, run folders, or folders of runs, as described in `inat_ft.compare`."""
    scored_by = get_metric(metric)
    candidates = read_candidates(paths, scored_by, group)
    if len(candidates) < 2:
        raise UsageError("a comparison needs at least two records", "inat-ft compare RUN OTHER")
    sign = -1 if scored_by.higher_is_better else 1
    candidates.sort(key=lambda found: (found.score is None, sign * found.score.value if found.score else 0.0))
    _check_leakage(candidates)
    _check_evidence(candidates)
    remarks = [f"{candidate.name} {text}" for candidate in candidates for _, text in candidate.caveats]
    return Comparison(scored_by, candidates, compare_pairs(candidates, scored_by, margin), remarks, margin)


def differing_settings(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """Return, for each configuration key whose known values are not all the same, its value in each record.

    A record without a configuration has `unknown` in each row; a key that a configuration lacks has an empty value.
    """
    flat = [_flatten(record.config) for record in records]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {
        key: tuple(values.get(key, "") if values else UNKNOWN for values in flat)
        for key in keys
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in _IGNORED)
    }
    return {key: values for key, values in rows.items() if len({*values} - {UNKNOWN}) > 1}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" == "data.split":
            found["data.split"] = PurePosixPath(str(value).replace("\\", "/")).name
        else:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            found[f"{prefix}{key}"] = "default" if value is None else shown
    return found


def _check_leakage(candidates: list[Candidate]) -> None:
    """Add a caveat where a classifier was trained on images that it, or one it is compared with, was tested on."""
    for candidate in candidates:
        split, manifest = candidate.record.split, candidate.manifest()
        if split is None and candidate.predictions:
            candidate.add(Caveat.UNKNOWN_TRAINING)
        if split is not None and manifest is None:
            candidate.add(Caveat.LOST_MANIFEST, manifest=split.manifest)
        if manifest is None:
            continue
        rows = manifest.rows("train")
        hashes, paths = ({column[row] for row in rows} for column in (manifest.hashes, manifest.paths))
        for other in candidates:
            count = _num_trained_on(other.predictions[0], manifest, hashes, paths) if other.predictions else 0
            if count and other is candidate:
                candidate.add(Caveat.OWN_LEAK, count=count)
            elif count:
                candidate.add(Caveat.OTHER_LEAK, count=count, name=other.name)
            candidate.leaks |= count > 0


def _num_trained_on(tested: Predictions, manifest: Manifest, hashes: set[str], paths: set[str]) -> int:
    """Return how many test images were training images, by content; or by the ends of their paths without hashes."""
    if all(tested.hashes):
        return sum(name in hashes for name in tested.hashes)
    known = set(manifest.paths) - paths
    count = 0
    for path in tested.paths:
        parts = path.replace("\\", "/").split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        count += bool(ends & paths) and not ends & known
    return count


def _check_evidence(candidates: list[Candidate]) -> None:
    """Add the caveats that depend on several candidates, or on how often the test set was evaluated."""
    for first, second in combinations(candidates, 2):
        a, b = ((candidate.record.val_accuracy, candidate.record.test_accuracy) for candidate in (first, second))
        if None not in a and a == b:
            first.add(Caveat.SAME_RESULTS, name=second.name)
    views = {id(c): c.record.test.tta for c in candidates if c.record.test and c.predictions}
    for candidate in candidates:
        record = candidate.record
        if len(set(views.values())) > 1 and views.get(id(candidate), "none") != "none":
            candidate.add(Caveat.OTHER_TTA)
        if record.test and record.test.look and record.test.look > len(candidates):
            candidate.add(Caveat.MANY_EVALUATIONS, count=record.test.look)
        if not record.history and not candidate.predictions and record.test_accuracy is not None:
            candidate.add(Caveat.NO_EVIDENCE)
