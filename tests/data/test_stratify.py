"""The assignment of images to subsets: exact results for small data, and the same results in every version."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from inat_ft.data.stratify import TEST, TRAIN, UNASSIGNED, VAL, _Allocation, _Group, stratified_group_split
from inat_ft.errors import DataError


def assign(
    labels: Sequence[int],
    units: Sequence[int] | None = None,
    preset: Sequence[int] | None = None,
    test: float = 0.25,
    val: float = 0.25,
    seed: int = 0,
) -> list[int]:
    number = len(labels)
    return stratified_group_split(
        [f"{place}.jpg" for place in range(number)],
        np.array(labels, np.int64),
        np.array(preset or [UNASSIGNED] * number, np.uint8),
        np.array(range(number) if units is None else units, np.int64),
        [f"c{label}" for label in range(max(labels) + 1)],
        {TEST: test, VAL: val},
        seed,
    ).tolist()


def counts(labels: Sequence[int], subsets: Sequence[int]) -> list[list[int]]:
    """Return the images of each class in train, val and test."""
    found = Counter(zip(labels, subsets, strict=True))
    return [[found[label, code] for code in (TRAIN, VAL, TEST)] for label in range(max(labels) + 1)]


@pytest.mark.parametrize(
    ("images", "test", "val", "expected"),
    [
        (20, 0.25, 0.25, [11, 4, 5]),  # 15 / 4 = 3.75
        (20, 0.0, 0.25, [15, 5, 0]),
        (10, 0.25, 0.2, [6, 1, 3]),  # 2.5 is rounded up, 1.4 down
        (10, 0.24, 0.5, [4, 4, 2]),
        (3, 0.25, 0.25, [1, 1, 1]),  # one image each, whatever the fraction
        (3, 0.9, 0.9, [1, 1, 1]),
        (100, 0.01, 0.01, [98, 1, 1]),
    ],
)
def test_single_images_are_divided_exactly(images: int, test: float, val: float, expected: list[int]) -> None:
    labels = [0] * images + [1] * 40
    assert counts(labels, assign(labels, test=test, val=val))[0] == expected


def test_the_same_images_are_drawn_in_every_version() -> None:
    """A changed digest means that existing seeds give other splits: do not update it without a new major version."""
    rng = np.random.default_rng(0)
    drawn = []
    for size in (12, 40, 90, 200):
        labels = rng.integers(0, 4, size).tolist()
        for units in (None, rng.integers(0, size, size).tolist(), rng.integers(0, size // 4, size).tolist()):
            for test, val in ((0.2, 0.2), (0.0, 0.3), (0.4, 0.1)):
                for seed in (0, 7):
                    try:
                        subsets = assign(labels, units, test=test, val=val, seed=seed)
                        drawn.append("".join(map(str, subsets)))
                    except DataError as error:
                        drawn.append(error.message)
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] == "0ab680d14c42216d"


def test_given_subsets_are_kept_and_only_the_missing_ones_are_drawn() -> None:
    labels = [0] * 20 + [1] * 20
    given_test = [TEST if place % 5 == 0 else UNASSIGNED for place in range(40)]
    subsets = assign(labels, preset=given_test)
    assert [code == TEST for code in subsets] == [code == TEST for code in given_test]
    assert counts(labels, subsets) == [[12, 4, 4], [12, 4, 4]]
    given_val = [VAL if place % 5 == 0 else UNASSIGNED for place in range(40)]
    assert counts(labels, assign(labels, preset=given_val)) == [[12, 4, 4], [12, 4, 4]]
    partly = [TRAIN if place % 2 else UNASSIGNED for place in range(40)]
    subsets = assign(labels, preset=partly, test=0.2, val=0.5)
    assert all(subsets[place] == TRAIN for place in range(1, 40, 2))
    assert counts(labels, subsets) == [[14, 4, 2], [14, 4, 2]]


def test_given_training_images_are_divided_only_without_a_validation_set() -> None:
    labels = [0] * 20
    whole = [TRAIN] * 16 + [TEST] * 4
    assert counts(labels, assign(labels, preset=whole)) == [[12, 4, 4]]
    with_val = [TRAIN] * 12 + [VAL] * 4 + [TEST] * 4
    assert assign(labels, preset=with_val) == with_val


def test_an_image_joins_the_given_training_images_of_its_group() -> None:
    labels, units = [0] * 12, [0, 0, 0, *range(1, 10)]
    preset = [TRAIN, *[UNASSIGNED] * 11]
    for seed in range(20):
        assert assign(labels, units, preset, seed=seed)[:3] == [TRAIN] * 3


def test_a_group_with_a_given_training_image_is_not_used_for_validation() -> None:
    preset = [UNASSIGNED, UNASSIGNED, TRAIN, UNASSIGNED]
    assert assign([0, 0, 1, 1], [0, 1, 0, 1], preset, test=0.1, val=0.1, seed=1) == [TRAIN, VAL, TRAIN, VAL]


@pytest.mark.parametrize(
    ("labels", "units", "fractions", "seed", "expected"),
    [
        ([0, 1, 1, 0, 0, 1, 0], [2, 4, 2, 5, 5, 4, 4], (0.5, 0.5), 1, "0102211"),
        ([0, 1, 0, 1, 1], [3, 0, 0, 1, 1], (0.25, 0.1), 0, "10011"),
        ([2, 1, 2, 0, 0, 2, 2, 1], [3, 4, 3, 0, 1, 0, 4, 1], (0.0, 0.1), 1, "10101001"),
    ],
)
def test_no_group_takes_the_last_training_images_of_a_class(
    labels: list[int], units: list[int], fractions: tuple[float, float], seed: int, expected: str
) -> None:
    subsets = assign(labels, units, test=fractions[0], val=fractions[1], seed=seed)
    assert all(row[TRAIN] and row[VAL] for row in counts(labels, subsets))
    assert "".join(map(str, subsets)) == expected
    assert len(set(zip(units, subsets, strict=True))) == len(set(units)), "each group is in one subset"


def test_a_class_with_given_training_images_may_give_all_others_away() -> None:
    """One image for each wanted subset is reserved, and one for training unless there is one."""
    labels, preset = [0] * 3 + [1] * 8, [TRAIN, *[UNASSIGNED] * 10]
    for seed in range(10):
        assert counts(labels, assign(labels, preset=preset, seed=seed))[0] == [1, 1, 1]


def test_a_class_with_too_few_images_is_named() -> None:
    with pytest.raises(
        DataError, match=r"class 'c1' has too few images or groups \(\d+ in \d+\): none would remain for val"
    ):
        assign([0] * 10 + [1])
    with pytest.raises(DataError, match="none would remain for train"):
        assign([0] * 10 + [1], preset=[*[UNASSIGNED] * 10, TEST], val=0.2)
    assert counts([0] * 10 + [1] * 2, assign([0] * 10 + [1] * 2))[1] == [1, 1, 0]  # the test set comes last


@pytest.mark.parametrize("seed", range(8))
def test_groups_stay_together_and_fill_no_more_than_their_share(seed: int) -> None:
    labels = [0] * 40
    units = [place // 4 if place < 20 else place for place in range(40)]  # five groups of four, twenty single images
    subsets = assign(labels, units, seed=seed)
    assert all(len(set(subsets[start : start + 4])) == 1 for start in range(0, 20, 4))
    assert counts(labels, subsets) == [[22, 8, 10]]
    grouped = [subsets[start] for start in range(0, 20, 4)]
    assert (grouped.count(TEST), grouped.count(VAL)) == (1, 1)  # 0.25 of 20 images is one group of four


@pytest.mark.parametrize("seed", range(8))
def test_data_of_groups_only_come_as_close_as_groups_allow(seed: int) -> None:
    labels, units = [0] * 30, [place // 3 for place in range(30)]
    assert counts(labels, assign(labels, units, seed=seed)) in ([[18, 6, 6]], [[15, 6, 9]])
    labels, units = [0] * 9, [place // 3 for place in range(9)]  # each subset gets its smallest group at least
    assert counts(labels, assign(labels, units, seed=seed)) == [[3, 3, 3]]


@pytest.mark.parametrize("seed", range(8))
def test_the_smallest_group_is_given_if_none_fits(seed: int) -> None:
    labels, units = [0] * 18 + [1] * 8, [*[0] * 8, *[1] * 6, *[2] * 4, *range(3, 11)]
    subsets = assign(labels, units, test=0.05, val=0.05, seed=seed)
    assert subsets[14] == TEST and subsets[8] == VAL and subsets[0] == TRAIN


def test_the_rules_of_a_group() -> None:
    group = _Group([0, 1, 2], Counter({0: 2, 1: 1}))
    assert group.fits([2, 1]) and group.fits([3, 3]) and not group.fits([1, 1]) and not group.fits([2, 0])
    assert (
        group.improves([2, 1]) and group.improves([2, 0]) and not group.improves([1, 0]) and not group.improves([0, 0])
    )


def test_a_group_is_taken_from_all_counts() -> None:
    subsets = np.full(3, UNASSIGNED, np.uint8)
    allocation = _Allocation(subsets, np.array([0, 0, 1]), np.array([0, 0, 0]), np.arange(3), 2)
    wanted, left = [5, 5], [7, 7]
    allocation._assign(_Group([0, 1, 2], Counter({0: 2, 1: 1})), VAL, wanted, left)
    assert (subsets.tolist(), wanted, left) == ([VAL] * 3, [3, 4], [5, 6])
