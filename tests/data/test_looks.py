"""What images look like: hashes as imagehash defines them."""

import imagehash
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inat_ft.data.scan import Looks, phash, sampled


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([2, 5, 16, 255]))
def test_perceptual_hashes_are_imagehashs(seed: int, count: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, levels + 1, (count, 8, 8)).astype(np.uint8)
    pictures = np.repeat(np.repeat(coarse, 4, 1), 4, 2) + rng.integers(0, 3, (count, 32, 32), dtype=np.uint8)
    wanted = [imagehash.phash(Image.fromarray(picture)).hash for picture in pictures]
    assert phash(pictures).tolist() == [int.from_bytes(np.packbits(bits).tobytes(), "big") for bits in wanted]


def test_a_look_is_of_the_whole_picture_whatever_its_size() -> None:
    grey = np.arange(32, dtype=np.uint8)[:, None].repeat(32, 1) * 8
    looks = Looks.blank(3)
    sizes = ((32, 32), (600, 800), (97, 33))
    pictures = [torch.from_numpy(np.array(Image.fromarray(grey).convert("RGB").resize((w, h), 0))) for h, w in sizes]
    looks.fill(range(3), [sampled(picture.permute(2, 0, 1)) for picture in pictures])
    assert np.abs(looks.thumbs.astype(int) - grey).max() <= 8  # a step of the ramp
    assert (looks.colours == looks.colours[0]).all()
