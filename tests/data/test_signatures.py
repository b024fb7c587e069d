"""What images look like: hashes as imagehash defines them."""

import imagehash
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_near_duplicates.search import near_duplicates
from inat_ft_near_duplicates.signatures import ImageSignatures, phash, thumbnail
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images


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
    signatures = ImageSignatures.blank(3)
    sizes = ((32, 32), (600, 800), (97, 33))
    pictures = [torch.from_numpy(np.array(Image.fromarray(grey).convert("RGB").resize((w, h), 0))) for h, w in sizes]
    signatures.update(range(3), [thumbnail(picture.permute(2, 0, 1)) for picture in pictures])
    assert np.abs(signatures.thumbs.astype(int) - grey).max() <= 8  # a step of the ramp
    assert np.abs(signatures.colors.astype(int) - signatures.colors[0]).max() <= 8


def looks_of(pictures: list[np.ndarray]) -> ImageSignatures:
    signatures = ImageSignatures.blank(len(pictures))
    signatures.update(
        range(len(pictures)), [thumbnail(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pictures]
    )
    return signatures


def photographs(count: int, size: int = 256) -> list[Image.Image]:
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    corners = np.random.default_rng(0).integers(0, (384, 171), (count, 2)).tolist()
    return [photos[place % 2].crop((x, y, x + size, y + size)) for place, (x, y) in enumerate(corners)]


def share_found(originals: list[Image.Image], copies: list[Image.Image]) -> float:
    pairs = near_duplicates(looks_of([np.array(picture) for picture in [*originals, *copies]])).tolist()
    return sum([place, place + len(originals)] in pairs for place in range(len(originals))) / len(originals)


@pytest.mark.parametrize("percent", [2, 3, 5])
def test_crops_at_the_center_are_found(percent: int) -> None:
    originals = photographs(60)
    edge = round(256 * percent / 200)
    assert share_found(originals, [photo.crop((edge, edge, 256 - edge, 256 - edge)) for photo in originals]) >= 0.95


def test_copies_with_clipped_highlights_are_found() -> None:
    originals = photographs(60)
    assert share_found(originals, [ImageEnhance.Brightness(photo).enhance(1.15) for photo in originals]) >= 0.95


def test_images_that_only_overlap_are_not_crops_of_each_other() -> None:
    photo = Image.fromarray(load_sample_images().images[0])
    boxes = [(x, y, x + 256, y + 256) for x in range(0, 380, 10) for y in (0, 12)]
    pairs = near_duplicates(looks_of([np.array(photo.crop(box)) for box in boxes]))
    assert pairs.tolist() == []


def test_copies_of_a_fine_texture_at_another_size_are_found() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(20):  # such as grass: hardly any contrast remains in a thumbnail
        grain = gaussian_filter(rng.normal(0, 1, (700, 600)), 2)
        picture = Image.fromarray((128 + 40 * grain / grain.std()).clip(0, 255).astype(np.uint8)).convert("RGB")
        pictures += [picture, picture.resize((300, 350), Image.Resampling.LANCZOS)]
    pairs = near_duplicates(looks_of([np.array(picture) for picture in pictures]))
    assert pairs.tolist() == [[place, place + 1] for place in range(0, 40, 2)]


def test_a_small_subject_of_another_colour_makes_another_picture() -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for colour in ((200, 30, 40), (30, 40, 200), (20, 110, 30)):
        picture = np.full((480, 480, 3), 250) + rng.normal(0, 2, (480, 480, 3))
        picture[150:240, 230:330] = colour
        pictures += [picture.clip(0, 255).astype(np.uint8)]
    again = Image.fromarray(pictures[0]).resize((300, 300))
    assert near_duplicates(looks_of([*pictures, np.array(again)])).tolist() == [[0, 3]]
