"""Comparing cross-validations: the corrected test on the folds, the pooled test, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inat_ft_folds.result import (
    OUT_OF_FOLD,
    FoldEntry,
    Summary,
    pooled,
    read_fold,
    read_summary,
    spreads,
    write_summary,
)
from scipy.stats import binomtest, t

import inat_ft
from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.predictions import from_probabilities, read_predictions, write_predictions
from inat_ft.metrics import Predictions
from inat_ft.records import RunRecord, SplitInfo, write_record

IMAGES = 120
LABELS = np.arange(IMAGES) % 2


def written(name: str, share: float, folds: int = 4, seed: int = 0, shift: int = 0) -> Path:
    """Write a cross-validation in which about this share of the images is correct.

    shift: moves images to the next fold.
    """
    folder, rng, number = (
        Path("runs") / name,
        np.random.default_rng([seed, round(1000 * share)]),
        (np.arange(IMAGES) + shift) // 2 % folds,
    )
    sure = np.where(rng.random(IMAGES) < share, 0.8, 0.3)
    p = np.stack([np.where(label == LABELS, sure, 1 - sure) for label in (0, 1)], 1)
    paths, entries, parts = [f"{label}/{row:03d}.png" for row, label in enumerate(LABELS)], [], []
    split = SplitInfo(manifest="../../photos.csv", fingerprint="f", counts={"train": IMAGES, "val": IMAGES // folds})
    for fold in range(folds):
        rows, run = np.flatnonzero(number == fold), f"{name}-fold-{fold + 1}"
        parts.append(
            from_probabilities(("a", "b"), [paths[row] for row in rows], [""] * len(rows), LABELS[rows], p[rows])
        )
        (folder / run).mkdir(parents=True)
        write_predictions(folder / run / "predictions-val.csv", parts[-1])
        config = {"stop": {"monitor": "val_accuracy"}, "optim": {"lr": share}}
        record = RunRecord(name=run, config=config, split=split, predictions={"val": "predictions-val.csv"})
        write_record(record, folder / run / "record.json")
        entries.append(FoldEntry(fold=fold + 1, run=run, num_train=IMAGES - len(rows), num_val=len(rows)))
    write_predictions(folder / OUT_OF_FOLD, pooled(parts))
    known = {"name": name, "created": "2026-01-01", "folds": folds, "seed": 0, "split": split, "complete": True}
    write_summary(Summary(**known, metrics=spreads(parts)[0], runs=entries), folder)
    return folder


@pytest.fixture
def pair() -> list[Path]:
    """Two cross-validations with the same folds, of which the first is better."""
    return [written("good", 0.9), written("slow", 0.7)]


def test_the_differences_of_the_folds_are_tested_with_the_correction(pair: list[Path]) -> None:
    found = inat_ft.compare(*pair)
    parts = [
        [read_predictions(path / f"{path.name}-fold-{n}" / "predictions-val.csv") for n in range(1, 5)] for path in pair
    ]
    good, slow = (np.array([part.correct.mean() for part in side]) for side in parts)
    assert found.reference == "good"
    difference = good - slow
    error = np.sqrt((1 / 4 + 1 / 3) * difference.var(ddof=1))
    (result,) = found.pairs
    assert result.p == pytest.approx(2 * t.sf(abs(difference.mean()) / error, 3), rel=1e-6)
    assert result.difference.value == pytest.approx(difference.mean())
    assert result.difference.low == pytest.approx(difference.mean() - t.isf(0.025, 3) * error)
    a, b = (read_predictions(path / OUT_OF_FOLD) for path in pair)
    only = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
    assert (result.n_first_only, result.n_second_only) == only
    found_p = found.to_dict()["cross_validation"]["pooled_p"]["slow"]
    assert found_p == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=1e-3)
    assert found.candidates[0].score.value == pytest.approx(good.mean())
    assert found.improvement(pair[1], pair[0]) == pytest.approx(difference.mean())


def test_the_command_states_test_and_assumptions(pair: list[Path], cli) -> None:
    ran = cli("compare", *pair, "--margin", 0.01)
    assert ran.code == 0, ran.err
    assert "held-out images" in ran.out and "test images" not in ran.out
    assert "Test: corrected resampled t-test on 4 folds (Nadeau and Bengio 2003)." in ran.out
    assert "correlated by the share of held-out images, 1/4" in ran.out
    assert "pooled held-out images gives p =" in ran.out
    assert "the best epochs were chosen on the held-out images" in ran.out
    failed = cli("compare", *pair, "--fail-under", 0.0)
    assert failed.code == 1 and "slow is better than" in failed.err
    assert cli("compare", *reversed(pair), "--fail-under", 0.1).code == 0


def test_other_metrics_and_the_summary_file_are_accepted(pair: list[Path]) -> None:
    found = inat_ft.compare(*(path / "cross-validation.json" for path in pair), metric="log_loss")
    assert found.reference == "good" and found.scored_by.name == "log_loss"
    assert found.pairs[0].difference.value < 0


def test_several_are_corrected_for_all_pairs(pair: list[Path]) -> None:
    found = inat_ft.compare(*pair, written("third", 0.8))
    assert len(found.pairs) == 2 and "Tests are Holm-corrected for all pairs." in found.summary
    good, third, slow = found.candidates
    assert [candidate.name for candidate in found.candidates] == ["good", "third", "slow"]
    ps = [a.difference(b).p for a, b in ((good, third), (good, slow), (third, slow))]
    ranks, corrected = np.argsort(ps), np.empty(3)
    corrected[ranks] = np.maximum.accumulate(np.minimum(1, np.sort(ps) * [3, 2, 1]))
    assert [pair.p_holm for pair in found.pairs] == pytest.approx(corrected[:2])


def test_equal_names_get_the_part_of_their_paths_that_differs(pair: list[Path]) -> None:
    for path in pair:
        file = path / "cross-validation.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "name": "same"}), encoding="utf-8")
    assert [candidate.name for candidate in inat_ft.compare(*pair).candidates] == ["same (good)", "same (slow)"]


def test_other_folds_are_refused(pair: list[Path]) -> None:
    for other, text in (
        (written("three", 0.8, folds=3), "do not have the same folds: 4 and 3"),
        (written("moved", 0.8, shift=1), "do not have the same folds: in fold 1, they were tested on different images"),
    ):
        with pytest.raises(UsageError, match=text) as refused:
            inat_ft.compare(pair[0], other)
        assert refused.value.hint == "train both with the same split and the same number of folds"


def test_a_single_run_or_a_repeated_one_is_refused(pair: list[Path]) -> None:
    for runs, options, text in (
        ((pair[0], pair[1] / "slow-fold-1"), {}, "slow-fold-1 is not a cross-validation"),
        ((pair[0], pair[0] / "cross-validation.json"), {}, "passed twice"),
        ((pair[0],), {}, "at least two cross-validations"),
        ((pair[0], "runs/slwo"), {}, "run not found: runs/slwo"),
        (pair, {"group": True}, "group=True cannot be used"),
    ):
        with pytest.raises(UsageError, match=text):
            inat_ft.compare(*runs, **options)


def test_folds_with_equal_differences_have_no_conclusion(pair: list[Path]) -> None:
    found = inat_ft.compare(pair[0], written("same", 0.9))
    assert found.pairs[0].p is None
    assert "No conclusion: all folds give the same difference in accuracy" in found.summary


@pytest.mark.slow
def test_trained_cross_validations_are_compared_in_a_report(config) -> None:
    rates = {"good": 3e-2, "slow": 1e-5}
    runs = [inat_ft.train(config(**{"optim.lr": rate}), folds=4, name=name).directory for name, rate in rates.items()]
    found = inat_ft.compare(*runs)
    found.to_html("report.html")
    page = Path("report.html").read_text()
    assert found.summary.split(" over")[0] in page
    assert "Results on the held-out images" in page and "inat-ft train --config runs/good/config.yaml --folds 4" in page


@pytest.mark.parametrize(
    ("text", "says"), [("{", "cannot read .* as JSON"), ("{}", "required, but missing"), ("[" * 100_000, "as JSON")]
)
def test_a_damaged_summary_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(RecordError, match=says):
        read_summary(tmp_path / "folds.json")
    with pytest.raises(UsageError, match="is not a cross-validation: it has no"):
        read_summary(tmp_path / "nowhere")


def test_a_fold_without_predictions_is_named() -> None:
    run = inat_ft.Run(RunRecord(name="a"), Path("runs/a"))
    with pytest.raises(RecordError, match="runs/a has no predictions, because its outputs are not finite"):
        read_fold(run)


def test_a_metric_of_probabilities_needs_them(pair: list[Path]) -> None:
    """Predictions of another program can consist of classes only."""
    for file in pair[1].glob("*/predictions-val.csv"):
        rows = [line.split(",")[:3] for line in file.read_text().splitlines()]
        file.write_text("".join(f"{','.join(row)}\n" for row in rows))
    assert inat_ft.compare(*pair).metric == "accuracy"
    with pytest.raises(UsageError, match="have no probabilities"):
        inat_ft.compare(*pair, metric="log_loss")
    assert "log_loss" not in spreads([replace(each, probabilities=None) for each in folds_of(pair[0])])[0]


def folds_of(folder: Path) -> list[Predictions]:
    return [read_predictions(file) for file in sorted(folder.glob("*/predictions-val.csv"))]


@pytest.mark.parametrize("name", ["", "..", "../other", "/tmp", "a\0b"])
def test_a_fold_is_inside_its_cross_validation(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a folder inside the cross-validation"):
        FoldEntry(fold=1, run=name, num_train=1, num_val=1)
