import numpy as np
import pytest
from inat_ft_near_duplicates import matching
from inat_ft_near_duplicates.search import near_duplicates
from inat_ft_near_duplicates.signatures import ImageSignatures
from PIL import Image
from sklearn.datasets import load_digits

from inat_ft.data.groups import components
from tests.benchmarks.near_duplicates import signatures as signatures_of


def crowd(count: int, copies: int) -> ImageSignatures:
    """Looks of one perceptual hash and one colour: `count` patterns, then slightly noisy copies of the first ones."""
    rng = np.random.default_rng(0)
    signatures = ImageSignatures.blank(count + copies)
    signatures.phashes[:] = 2**63
    signatures.colors[:] = 128
    signatures.thumbs[:count] = rng.integers(28, 228, (count, 32, 32))
    noise = rng.integers(-2, 3, (copies, 32, 32))
    signatures.thumbs[count:] = np.clip(1.05 * signatures.thumbs[:copies].astype(np.float32) + noise, 0, 255)
    return signatures


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pairs whose whole thumbnails are compared."""
    numbers: list[int] = []
    real = matching.thumbnails_match

    def count(first, second):
        numbers.append(len(first))
        return real(first, second)

    monkeypatch.setattr(matching, "thumbnails_match", count)
    return numbers


def test_copies_are_found_in_a_crowd_of_equal_hashes_with_few_comparisons(compared: list[int]) -> None:
    pairs = near_duplicates(crowd(3000, 200))
    assert sum(compared) < 3200
    assert len(pairs) >= 190 and (pairs[:, 1] - pairs[:, 0] == 3000).all()


def test_what_looks_the_same_to_the_last_bit_is_one_group_however_many_there_are(compared: list[int]) -> None:
    signatures = ImageSignatures.blank(5000)
    signatures.colors[::2] = 200
    pairs = near_duplicates(signatures)
    assert sum(compared) < 10
    assert len(pairs) == 4998 and np.unique(components(5000, pairs)).tolist() == [0, 1]


def test_a_greyscale_copy_is_found_and_two_colours_of_one_subject_stay_apart() -> None:
    signatures = crowd(3, 0)
    signatures.thumbs[:] = signatures.thumbs[0]
    signatures.colors[0], signatures.colors[1], signatures.colors[2] = (200, 60, 60), (106, 106, 106), (60, 60, 200)
    assert near_duplicates(signatures).tolist() == [[0, 1], [1, 2]]
    signatures.thumbs[:] = 128  # plain pictures agree by chance
    signatures.thumbs[:, 0, 0] = (127, 128, 129)
    assert near_duplicates(signatures).tolist() == []


def test_of_no_images_none_are_copies() -> None:
    assert near_duplicates(ImageSignatures.blank(0)).shape == (0, 2) and near_duplicates(
        ImageSignatures.blank(1)
    ).shape == (0, 2)


@pytest.mark.slow
def test_the_quick_comparison_drops_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    signatures = crowd(300, 100)
    smooth = np.kron(rng.integers(60, 200, (400, 4, 4)), np.ones((8, 8)))
    signatures.thumbs[:] = np.clip(smooth + rng.integers(-9, 10, signatures.thumbs.shape), 0, 255)
    signatures.thumbs[200:] = np.clip(
        1.1 * signatures.thumbs[:200].astype(np.float32) + rng.integers(-6, 7, (200, 32, 32)), 0, 255
    )
    quick = near_duplicates(signatures)
    monkeypatch.setattr(matching, "blocks_may_match", lambda first, *_: np.ones(len(first), bool))
    assert len(quick) > 100 and np.array_equal(quick, near_duplicates(signatures))


@pytest.mark.slow
def test_different_smooth_drawings_are_not_crops_of_each_other() -> None:
    digits = [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
        for image in load_digits().images
    ]
    assert len(near_duplicates(signatures_of([digit.convert("RGB") for digit in digits]))) == 0
