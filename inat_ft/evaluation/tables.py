"""The columns of a comparison, each declared once for the terminal, JSON and HTML, and the settings that differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from inat_ft.evaluation.candidates import Candidate
from inat_ft.evaluation.pairwise import PairwiseResult
from inat_ft.records import RunRecord

if TYPE_CHECKING:
    from inat_ft.evaluation.compare import Comparison

T = TypeVar("T", Candidate, PairwiseResult)
_IGNORED = ("name", "seed", "track", "compute", "data.root")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column: its key in JSON, its title, its value, and the text of a value that is not None.

    title: `{metric}` and `{reference}` are filled in. numeric: aligned to the right. rank: columns of higher rank are left
    out first when a terminal is narrow; 0 is never left out.
    """

    key: str
    title: str
    value: Callable[[T], Any]
    text: Callable[[Any], str] = str
    missing: str = ""
    numeric: bool = True
    rank: int = 0

    def cell(self, row: T) -> str:
        """Return the text of a row."""
        value = self.value(row)
        return self.missing if value is None else self.text(value)


def _interval(values: tuple[float, float]) -> str:
    return f"{values[0]:.4f} to {values[1]:.4f}"


def _score_interval(candidate: Candidate) -> tuple[float, float] | None:
    score = candidate.score
    return None if score is None or score.low is None or score.high is None else (score.low, score.high)


def _score_text(values: tuple[float, float | None]) -> str:
    return f"{values[0]:.4f}" if values[1] is None else f"{values[0]:.4f} ± {values[1]:.4f}"


CANDIDATE_COLUMNS: tuple[Column[Candidate], ...] = (
    Column("name", "name", lambda c: c.name, numeric=False),
    Column("score", "{metric}", lambda c: c.score and (c.score.value, c.std), _score_text, UNKNOWN),
    Column("interval", "95 % interval", _score_interval, _interval, UNKNOWN, numeric=False),
    Column("num_test", "test images", lambda c: c.num_test, "{:,}".format, UNKNOWN, rank=1),
    Column("trained_parameters", "trained", lambda c: c.record.parameters and c.record.parameters.trained, "{:,}".format,
           rank=2),
    Column("epochs", "epochs", lambda c: len(c.record.history) or None, rank=4),
    Column("seconds", "time", lambda c: c.record.seconds.get("total"), "{:,.1f} s".format, rank=3),
    Column("images_per_s", "images/s", lambda c: c.record.images_per_s, "{:,.0f}".format, rank=7),
    Column("peak_memory_mib", "memory", lambda c: c.record.peak_memory_mib, "{:,.0f} MiB".format, rank=6),
    Column("test_evaluations", "test evaluations", lambda c: c.record.test and c.record.test.look, rank=5),
)  # fmt: skip


def _other_minus_reference(pair: PairwiseResult) -> tuple[float, float, float] | None:
    found = pair.difference
    return None if found is None else (0.0 - found.value, 0.0 - found.high, 0.0 - found.low)


def _result(pair: PairwiseResult) -> str:
    if pair.not_comparable:
        return pair.not_comparable.text
    if pair.is_significant:
        return "significant" + (", within the margin" if pair.equivalent else "")
    return "equivalent" if pair.equivalent else "not significantly different"


PAIR_COLUMNS: tuple[Column[PairwiseResult], ...] = (
    Column("second", "compared with {reference}", lambda p: p.second, numeric=False),
    Column("difference", "difference", _other_minus_reference, lambda d: f"{d[0]:+.4f}", UNKNOWN),
    Column("interval", "95 % interval", _other_minus_reference, lambda d: f"{d[1]:+.4f} to {d[2]:+.4f}", UNKNOWN,
           numeric=False),
    Column("p_holm", "p (Holm)", lambda p: p.p_holm, "{:.2g}".format),
    Column("only_first", "only {reference} correct", lambda p: p.n_first_only, "{:,}".format, rank=2),
    Column("only_second", "only the other correct", lambda p: p.n_second_only, "{:,}".format, rank=3),
    Column("agreement", "agreement", lambda p: p.agreement, "{:.1%}".format, rank=1),
    Column("result", "result", _result, numeric=False),
)  # fmt: skip


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as `inat-ft compare --json` prints it."""
    return {
        "metric": comparison.metric,
        "reference": comparison.reference,
        "sentence": comparison.summary,
        "entries": [
            {
                **{column.key: column.value(candidate) for column in CANDIDATE_COLUMNS},
                "records": [file.as_posix() for file in candidate.files],
                "score": candidate.score.model_dump() if candidate.score else None,
                "deviation": candidate.std,
                "remarks": [caveat.text for caveat in candidate.caveats],
            }
            for candidate in comparison.candidates
        ],
        "pairs": [
            {
                **{column.key: column.value(pair) for column in PAIR_COLUMNS},
                "first": pair.first,
                "difference": pair.difference.__dict__ if pair.difference else None,
                "p": pair.p,
                "same": pair.equivalent,
                "reason": pair.not_comparable and pair.not_comparable.json_name,
                "obstacle": pair.not_comparable.text if pair.not_comparable else "",
                "different_images": pair.different_data,
                "is_real": pair.is_significant,
            }
            for pair in comparison.pairs
        ],
        "remarks": comparison.remarks,
        "margin": comparison.margin,
    }


def differing_settings(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """Return, for each configuration key whose value is not the same in all records, its value in each of them.

    A record without a configuration has `unknown` everywhere; a key that a configuration lacks has an empty value.
    """
    flat = [_flatten(record.config) for record in records]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {
        key: tuple(values.get(key, "") if values else UNKNOWN for values in flat)
        for key in keys
        if not any(key == ignored or key.startswith(f"{ignored}.") for ignored in _IGNORED)
    }
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" == "data.split":
            found["data.split"] = PurePosixPath(str(value).replace("\\", "/")).name
        else:
            found[f"{prefix}{key}"] = (
                "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
            )
    return found
