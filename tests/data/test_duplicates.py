import time

import numpy as np

from inat_ft.data.duplicates import components, near_copies
from inat_ft.data.looks import Looks


def crowd(count: int, copies: int) -> Looks:
    """Looks of one perceptual hash and one colour: `count` patterns, then slightly noisy copies of the first ones."""
    rng = np.random.default_rng(0)
    looks = Looks.blank(count + copies)
    looks.phashes[:] = 2**63
    looks.colours[:] = 128
    looks.thumbs[:count] = rng.integers(28, 228, (count, 32, 32))
    noise = rng.integers(-2, 3, (copies, 32, 32))
    looks.thumbs[count:] = np.clip(1.05 * looks.thumbs[:copies].astype(np.float32) + noise, 0, 255)
    return looks


def test_copies_are_found_in_a_crowd_of_equal_hashes_in_little_time() -> None:
    started = time.perf_counter()
    pairs = near_copies(crowd(3000, 200))
    assert time.perf_counter() - started < 20
    assert len(pairs) >= 190 and (pairs[:, 1] - pairs[:, 0] == 3000).all()


def test_what_looks_the_same_to_the_last_bit_is_one_group_however_many_there_are() -> None:
    looks = Looks.blank(5000)
    looks.colours[::2] = 200
    started = time.perf_counter()
    pairs = near_copies(looks)
    assert time.perf_counter() - started < 10
    assert len(pairs) == 4998 and np.unique(components(5000, pairs)).tolist() == [0, 1]


def test_of_no_images_none_are_copies() -> None:
    assert near_copies(Looks.blank(0)).shape == (0, 2) and near_copies(Looks.blank(1)).shape == (0, 2)
