"""Compare cross-validations on their held-out images, fold by fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from inat_ft.api.comparison import Comparison
from inat_ft.errors import UsageError
from inat_ft.evaluation.candidates import Candidate, Reason, distinguish
from inat_ft.evaluation.pairwise import PairwiseResult, summarize
from inat_ft.evaluation.predictions import align
from inat_ft.metrics.base import Metric, Predictions, contributions_of, get_metric, value_of
from inat_ft.metrics.bounds import ALPHA, Difference, holm, paired
from inat_ft.paths import FOLDS_SUMMARY, is_cross_validation
from inat_ft.records import MetricValue
from inat_ft_folds.resampled import Resampled, resampled
from inat_ft_folds.result import CrossValidation, pooled

_METHOD = "corrected resampled t"


@dataclass
class FoldCandidate(Candidate):
    """A cross-validation. folds: the predictions for the held-out images of each fold; values: the metric in each fold."""

    folds: list[Predictions] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Number of held-out over training images, as a mean over the folds."""
        sizes = np.array([len(fold) for fold in self.folds])
        return float((sizes / (sizes.sum() - sizes)).mean())

    def difference(self, other: FoldCandidate) -> Resampled:
        """Return the metric of this one minus that of the other over the folds."""
        return resampled([a - b for a, b in zip(self.values, other.values, strict=True)], self.ratio)


@dataclass(frozen=True)
class FoldComparison(Comparison):
    """A comparison of cross-validations with the same folds."""

    tested: ClassVar[str] = "held-out images"
    _file: ClassVar[str] = FOLDS_SUMMARY
    pooled: dict[str, float | None] = field(default_factory=dict)
    """p of the paired test on the pooled predictions, by the name of the cross-validation compared with the reference."""

    @property
    def folds(self) -> int:
        """Number of folds."""
        return len(_folds(self.candidates)[0].folds)

    @property
    def summary(self) -> str:
        """The conclusion in a few sentences, with the test that it rests on."""
        where = f"over these {self.folds} folds"
        found = summarize(self.candidates, self.pairs, self.scored_by, self.margin, where)
        return f"{found} Test: corrected resampled t-test on {self.folds} folds (Nadeau and Bengio 2003)."

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as `inat-ft compare --json` prints it."""
        scores = {candidate.name: candidate.values for candidate in _folds(self.candidates)}
        about = {"folds": self.folds, "test": _METHOD, "scores": scores, "pooled_p": self.pooled}
        return {**super().to_dict(), "cross_validation": about}

    def _pairs(self, candidates: Sequence[Candidate]) -> list[PairwiseResult]:
        return _test_all(_folds(candidates), self.scored_by, None)


def _folds(candidates: Sequence[Candidate]) -> list[FoldCandidate]:
    return [candidate for candidate in candidates if isinstance(candidate, FoldCandidate)]


def compare(paths: Sequence[Path], metric: str, group: bool, margin: float | None) -> FoldComparison:
    """Compare cross-validations, as described in `inat_ft.compare`.

    Raises UsageError if a run is not a cross-validation, or if the folds are not the same.
    """
    _check(paths, group)
    scored_by = get_metric(metric)
    candidates = [_candidate(CrossValidation.open(path), scored_by) for path in paths]
    distinguish(candidates)
    for other in candidates[1:]:
        _require_same_folds(candidates[0], other)
    sign = -1 if scored_by.higher_is_better else 1
    candidates.sort(key=lambda found: sign * float(np.mean(found.values)))
    pairs = _test_all(candidates, scored_by, margin)
    tested = {other.name: _pooled_p(candidates[0], other, scored_by) for other in candidates[1:]}
    remarks = _remarks(candidates, tested, scored_by)
    return FoldComparison(scored_by, list(candidates), pairs, remarks, margin, tested)


def _check(paths: Sequence[Path], group: bool) -> None:
    if missing := [path for path in paths if not path.exists()]:
        raise UsageError(f"run not found: {missing[0]}", "pass the folder of a cross-validation, such as runs/NAME")
    if single := [path for path in paths if not is_cross_validation(path)]:
        raise UsageError(
            f"{single[0]} is not a cross-validation, so it cannot be compared with one",
            "compare cross-validations with each other: inat-ft train --folds",
        )
    if group:
        raise UsageError("--group cannot be used with cross-validations", "remove --group")
    if len({(path.parent if path.is_file() else path).resolve() for path in paths}) < len(paths):
        raise UsageError("the same cross-validation was passed twice", "remove one of them")
    if len(paths) < 2:
        raise UsageError("a comparison needs at least two cross-validations", "inat-ft compare RUN OTHER")


def _candidate(found: CrossValidation, metric: Metric) -> FoldCandidate:
    folds, first = found.fold_predictions(), found.runs[0].record
    whole = pooled(folds)
    if metric.needs_probabilities and whole.probabilities is None:
        raise UsageError(f"the predictions of {found.directory} have no probabilities", "choose another --metric")
    values = [value_of(metric, fold) for fold in folds]
    changes = {
        "name": found.name,
        "split": found.summary.split,
        "history": [],
        "best_epoch": None,
        "seconds": {"total": found.summary.seconds} if found.summary.seconds else {},
        "images_per_s": None,
        "test": None,
    }
    candidate = FoldCandidate(
        name=found.name,
        records=[first.model_copy(update=changes)],
        files=[found.directory / FOLDS_SUMMARY],
        predictions=[whole],
        num_test=len(whole),
        std=float(np.std(values, ddof=1)),
        folds=folds,
        values=values,
    )
    mean = resampled(values, candidate.ratio)
    low, high = np.clip(mean.interval(), *metric.bounds).tolist()
    candidate.score = MetricValue(value=mean.mean, low=low, high=high, method=_METHOD)
    return candidate


def _require_same_folds(first: FoldCandidate, other: FoldCandidate) -> None:
    hint = "train both with the same split and the same number of folds"
    names = f"{first.name} and {other.name} do not have the same folds"
    if len(first.folds) != len(other.folds):
        raise UsageError(f"{names}: {len(first.folds)} and {len(other.folds)}", hint)
    for number, (a, b) in enumerate(zip(first.folds, other.folds, strict=True), 1):
        aligned = align(a, b)
        if isinstance(aligned, str):
            raise UsageError(f"{names}: in fold {number}, {aligned}", hint)


def _test_all(candidates: Sequence[FoldCandidate], metric: Metric, margin: float | None) -> list[PairwiseResult]:
    """Test the first against each other one; p and interval are corrected for all pairs."""
    pairs = list(combinations(candidates, 2))
    tests = [a.difference(b) for a, b in pairs]
    corrected, levels = holm([1.0 if test.p is None else test.p for test in tests])
    return [
        _pair(a, b, metric, margin, test, p, level)
        for (a, b), test, p, level in zip(pairs, tests, corrected, levels, strict=True)
        if a is candidates[0]
    ]


def _pair(
    a: FoldCandidate,
    b: FoldCandidate,
    metric: Metric,
    margin: float | None,
    test: Resampled,
    p_holm: float,
    level: float,
) -> PairwiseResult:
    first, second = a.predictions[0], _aligned(a, b)
    text = f"all folds give the same difference in {metric.label}, so its error cannot be estimated"
    return PairwiseResult(
        a.name,
        b.name,
        Difference(test.mean, *test.interval(level), _METHOD),
        test.p,
        p_holm if test.varies else None,
        n_first_only=int((first.correct & ~second.correct).sum()),
        n_second_only=int((second.correct & ~first.correct).sum()),
        agreement=float((first.predicted == second.predicted).mean()),
        equivalent=None if margin is None else test.within(margin),
        reason=None if test.varies else Reason.NO_VARIATION,
        obstacle="" if test.varies else text,
    )


def _aligned(a: FoldCandidate, b: FoldCandidate) -> Predictions:
    aligned = align(a.predictions[0], b.predictions[0])
    assert not isinstance(aligned, str)  # their folds are the same
    return aligned


def _pooled_p(a: FoldCandidate, b: FoldCandidate, metric: Metric) -> float | None:
    return paired(contributions_of(metric, a.predictions[0]) - contributions_of(metric, _aligned(a, b))).p


def _remarks(candidates: Sequence[FoldCandidate], tested: dict[str, float | None], metric: Metric) -> list[str]:
    folds = len(candidates[0].folds)
    texts = [
        f"the test assumes that the differences of the {folds} folds are normally distributed and correlated by the share "
        f"of held-out images, 1/{folds}; it has {folds - 1} degrees of freedom, so it finds only large differences",
    ]
    for name, p in tested.items():
        if p is not None:
            below = "below" if p < ALPHA else "not below"
            texts.append(
                f"the paired test on the pooled held-out images gives p = {p:.2g} for {candidates[0].name} and {name}, "
                f"{below} {ALPHA:g}; it assumes independent images and ignores the variation over training sets"
            )
    biased = [c.name for c in candidates if str(c.record.config.get("stop", {}).get("monitor", "")).startswith("val")]
    if biased:
        texts.append(
            f"{' and '.join(biased)}: the best epochs were chosen on the held-out images, so the {metric.label} is slightly "
            "optimistic (--monitor train_loss avoids this)"
        )
    return [*texts, *(f"{c.name} {text}" for c in candidates for _, text in c.caveats)]
