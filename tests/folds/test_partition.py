"""The folds of a cross-validation: disjoint, complete, stratified, and with groups kept together."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inat_ft_folds.partition import assign_folds, fold_manifests

from inat_ft.data.manifest import Manifest, manifest_text, read_manifest
from inat_ft.errors import DataError, UsageError


@st.composite
def data_sets(draw: st.DrawFn, grouped: bool, mixed: bool = False):
    """Labels, units, an order and a number of folds. mixed: groups can contain several classes."""
    classes = draw(st.integers(1, 4))
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=2, max_size=60)))
    units = np.arange(len(labels))
    if grouped:
        names = np.array(draw(st.lists(st.integers(0, 8), min_size=len(labels), max_size=len(labels))))
        keys = names if mixed else names * classes + labels
        units = np.where(names < 6, np.unique(keys, return_inverse=True)[1] + len(labels), units)
    order = np.array(draw(st.permutations(range(len(labels)))))
    return labels, units, order, draw(st.integers(2, 7))


def counts(folds: np.ndarray, labels: np.ndarray, num_folds: int) -> np.ndarray:
    return np.array([np.bincount(labels[folds == fold], minlength=labels.max() + 1) for fold in range(num_folds)])


@given(data_sets(grouped=False))
def test_without_groups_all_folds_are_equal_within_one_image(drawn) -> None:
    labels, units, order, num_folds = drawn
    folds = assign_folds(labels, units, order, num_folds)
    assert len(folds) == len(labels) and ((folds >= 0) & (folds < num_folds)).all()
    table = counts(folds, labels, num_folds)
    assert table.sum() == len(labels)
    assert np.ptp(table, axis=0).max() <= 1
    assert np.ptp(table.sum(1)) <= 1


@given(data_sets(grouped=True, mixed=True))
def test_a_group_is_never_divided(drawn) -> None:
    labels, units, order, num_folds = drawn
    folds = assign_folds(labels, units, order, num_folds)
    assert ((folds >= 0) & (folds < num_folds)).all()
    for unit in np.unique(units):
        assert len(np.unique(folds[units == unit])) == 1


@given(data_sets(grouped=True))
def test_groups_of_one_class_unbalance_it_by_no_more_than_the_largest(drawn) -> None:
    labels, units, order, num_folds = drawn
    table = counts(assign_folds(labels, units, order, num_folds), labels, num_folds)
    for label in np.unique(labels):
        largest = np.unique(units[labels == label], return_counts=True)[1].max()
        assert np.ptp(table[:, label]) <= largest


def test_many_rare_classes_do_not_gather_in_the_same_folds() -> None:
    labels = np.repeat(np.arange(30), 2)
    folds = assign_folds(labels, np.arange(60), np.arange(60), 5)
    assert counts(folds, labels, 5).sum(1).tolist() == [12] * 5


@pytest.fixture
def manifest(manifest_file: Path) -> Manifest:
    return read_manifest(manifest_file)


def test_each_image_is_held_out_once_and_the_test_images_never(manifest, tmp_path: Path) -> None:
    folds = fold_manifests(manifest, 4, tmp_path / "splits")
    held_out = [path for fold in folds for path in np.array(fold.paths)[fold.rows("val")].tolist()]
    known = np.flatnonzero(manifest.subsets != 2)
    assert sorted(held_out) == [manifest.paths[row] for row in known]
    for fold in folds:
        assert len(fold.rows("test")) == 0 and len(fold.rows("train")) + len(fold.rows("val")) == len(known)
        assert min(row["train"] for row in fold.counts().values()) > 0


def test_the_manifest_of_a_fold_reads_back_with_its_images(manifest, tmp_path: Path) -> None:
    fold = fold_manifests(manifest, 3, tmp_path / "splits")[1]
    fold.path.parent.mkdir()
    fold.path.write_text(manifest_text(fold))
    read = read_manifest(fold.path)
    assert (read.subsets == fold.subsets).all() and list(read.hashes) == fold.hashes and read.made["fold"] == 2
    assert all((read.root / path).is_file() for path in read.paths)


def test_the_folds_depend_on_the_seed_of_the_split_only(manifest, tmp_path: Path) -> None:
    def folds(which: Manifest) -> list[list[int]]:
        return [fold.subsets.tolist() for fold in fold_manifests(which, 3, tmp_path)]

    assert folds(manifest) == folds(manifest) != folds(replace(manifest, seed=manifest.seed + 1))


def test_a_class_in_a_single_group_is_refused(manifest, tmp_path: Path) -> None:
    groups = ["all" if label == 1 else "" for label in manifest.labels]
    with pytest.raises(DataError, match="class 'class1' has too few images or groups"):
        fold_manifests(replace(manifest, groups=groups), 3, tmp_path)


def test_more_folds_than_images_are_refused(manifest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has only 45 training and validation images"):
        fold_manifests(manifest, 46, tmp_path)
