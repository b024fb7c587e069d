"""How often near copies are found, how often different pictures are taken for copies, and how the search grows.

    python -m tests.benchmarks.near_duplicates [--quick]

Copies: crops of scikit-learn's two photographs, saved again at JPEG quality 50 to 90, resized to half, brightened by 10%.
Different pictures of one kind, of which none may be merged: the 1,797 handwritten digits; plain grounds of one colour
with a small subject somewhere; plain grounds with grain; overlapping crops of one photograph.
"""

import argparse
import time
from io import BytesIO

import numpy as np
from inat_ft_near_duplicates.search import near_duplicates
from inat_ft_near_duplicates.signatures import ImageSignatures, thumbnail
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_images

from inat_ft.images.decode import decode
from tests.benchmarks.reporting import report


def signatures(pictures):
    encoded = []
    for picture in pictures:
        data = BytesIO()
        picture.save(data, "JPEG", quality=92)
        encoded.append(data.getvalue())
    found = ImageSignatures.blank(len(encoded))
    images = [decode(data) for data in encoded]
    found.update(range(len(images)), [thumbnail(image) for image in images])
    found.ratios[:] = [image.shape[2] / image.shape[1] for image in images]
    return found


def crops(rng, count, size):
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    for number in range(count):
        photo = photos[number % len(photos)]
        x, y = rng.integers(0, photo.width - size), rng.integers(0, photo.height - size)
        yield photo.crop((x, y, x + size, y + size))


WAYS = (
    *("quality 90", "quality 70", "quality 50", "half size", "10% brighter", "15% brighter"),
    *("greyscale", "cropped by 2%", "cropped by 5%", "mirrored", "rotated by 2 degrees"),
)


def again(picture, way):
    changed = {
        "10% brighter": lambda: ImageEnhance.Brightness(picture).enhance(1.1),
        "15% brighter": lambda: ImageEnhance.Brightness(picture).enhance(1.15),
        "greyscale": lambda: picture.convert("L").convert("RGB"),
        "cropped by 2%": lambda: cropped(picture, 0.02),
        "cropped by 5%": lambda: cropped(picture, 0.05),
        "mirrored": lambda: ImageOps.mirror(picture),
        "rotated by 2 degrees": lambda: picture.rotate(2, Image.Resampling.BICUBIC),
    }
    if way in changed:
        return changed[way]()
    if way == "half size":
        return picture.resize((picture.width // 2, picture.height // 2))
    data = BytesIO()
    picture.save(data, "JPEG", quality=int(way.split()[-1]))
    return Image.open(data).convert("RGB")


def cropped(picture, fraction):
    x, y = (round(side * fraction / 2) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def textures(rng, count):
    for _ in range(count):
        grain = gaussian_filter(rng.normal(0, 1, (600, 800)), 2)
        yield Image.fromarray((128 + 40 * grain / grain.std()).clip(0, 255).astype(np.uint8)).convert("RGB")


def balls(rng, count):
    for number in range(count):
        picture = Image.new("RGB", (480, 480), (250, 250, 250))
        x, y = rng.integers(192, 200, 2)
        colour = ((200, 30, 40), (30, 40, 200), (20, 110, 30))[number % 3]
        ImageDraw.Draw(picture).ellipse([x, y, x + 90, y + 90], fill=colour)
        yield picture


def plain(rng, count, grain):
    ground = np.array([150, 190, 230])
    for _ in range(count):
        image = np.clip(ground + rng.normal(0, grain, (300, 400, 3)) + np.linspace(-6, 6, 400)[None, :, None], 0, 255)
        picture = Image.fromarray(image.astype(np.uint8))
        side = int(rng.integers(12, 50))
        subject = Image.fromarray(rng.integers(0, 160, (side, side, 3), dtype=np.uint8))
        if grain < 10:
            picture.paste(subject, (int(rng.integers(0, 400 - side)), int(rng.integers(0, 300 - side))))
        yield picture


def main(quick: bool) -> None:
    rng = np.random.default_rng(0)
    copies, merged_share, seconds = {}, {}, {}
    originals = list(crops(rng, 40 if quick else 200, 256))
    print(f"{'copies of photographs':32} {'found':>14}")
    for way in WAYS:
        count = len(originals)
        pairs = near_duplicates(signatures(originals + [again(picture, way) for picture in originals]))
        found = sum((pairs == [place, place + count]).all(1).any() for place in range(count))
        copies[way] = round(found / count, 4)
        print(f"{way:32} {found:6} of {count:4}")
    fine = list(textures(rng, 40))
    pairs = near_duplicates(
        signatures(fine + [picture.resize((400, 300), Image.Resampling.LANCZOS) for picture in fine])
    )
    found = sum((pairs == [place, place + 40]).all(1).any() for place in range(40))
    copies["fine texture, half size"] = round(found / 40, 4)
    print(f"{'fine texture, half size':32} {found:6} of   40")
    same_place = near_duplicates(signatures(list(balls(rng, 90))))
    apart = int((same_place[:, 0] % 3 != same_place[:, 1] % 3).sum())
    print(f"balls of three colours in one place, 90: {apart} pairs of different colours merged")
    digits = [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.NEAREST).convert("RGB")
        for image in load_digits().images[: 300 if quick else None]
    ]
    smooth = [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC).convert("RGB")
        for image in load_digits().images[: 300 if quick else None]
    ]
    flat = [Image.new("RGB", (200, 150), tuple(map(int, rng.integers(0, 255, 3)))) for _ in range(300)]
    different = {
        "plain colours": flat,
        "handwritten digits, 32 x 32": digits,
        "handwritten digits, smooth": smooth,
        "plain ground, small subject": list(plain(rng, 100 if quick else 500, 2.0)),
        "grain alone": list(plain(rng, 100 if quick else 500, 12.0)),
        "different crops of a photograph": originals,
    }
    print(f"\n{'different pictures':32} {'pairs':>10} {'merged':>8} {'images merged':>14}")
    for name, pictures in different.items():
        pairs = near_duplicates(signatures(pictures))
        merged = len(np.unique(pairs))
        merged_share[name] = round(merged / len(pictures), 4)
        print(f"{name:32} {len(pictures) * (len(pictures) - 1) // 2:10,} {len(pairs):8} {merged / len(pictures):14.2%}")
    print(f"\n{'images (random thumbnails)':32} {'seconds':>10}")
    for count in (3_000, 12_000) if quick else (12_000, 48_000, 192_000):
        random = ImageSignatures.blank(count)
        random.thumbs[:] = np.kron(rng.integers(0, 255, (count, 4, 4), dtype=np.uint8), np.ones((8, 8), np.uint8))
        random.phashes[:] = rng.integers(0, 2**63, count, dtype=np.int64)
        started = time.perf_counter()
        near_duplicates(random)
        seconds[count] = round(time.perf_counter() - started, 2)
        print(f"{count:32,} {seconds[count]:10.1f}")
    report(copies_found=copies, images_merged_wrongly=merged_share, balls_merged_across_colours=apart, search_s=seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    main(parser.parse_args().quick)
