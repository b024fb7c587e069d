"""Photographs to measure on: JPEGs of 800 x 600 made from scikit-learn's two, each with a crop and grain of its own."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def make_pictures(root: Path, number: int) -> Path:
    """`root/{train,val}/<class>/*.jpg`, ten classes, four fifths in train."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for place in range(number):
        rng = np.random.default_rng(place)
        photo = photos[place % 2]
        width = int(rng.integers(300, 560))
        height = width * 3 // 4
        x, y = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
        crop = photo.crop((x, y, x + width, y + height)).resize((800, 600), Image.Resampling.BICUBIC)
        grain = np.asarray(crop).astype(np.int16) + rng.normal(0, 6, (600, 800, 1)).astype(np.int16)
        file = root / ("val" if place % 5 == 0 else "train") / f"class{place // 5 % 10}" / f"{place:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return root


def write_csv(root: Path) -> Path:
    """The same subsets for `inat-ft split`."""
    file = root / "list.csv"
    rows = [f"{p.relative_to(root).as_posix()},{p.parent.name},{p.parts[-3]}" for p in sorted(root.rglob("*.jpg"))]
    file.write_text("path,label,subset\n" + "\n".join(rows) + "\n")
    return file
