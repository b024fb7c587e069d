from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from inat_ft.data.images import ImageProblem, decode, load_image
from inat_ft.errors import DataError

RED = (200, 30, 40)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def mean_colour(data: bytes) -> np.ndarray:
    return decode(data).permute(1, 2, 0).numpy().reshape(-1, 3).mean(0)


def red(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, RED).convert(mode)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (encoded(red(), "JPEG", quality=95), 3),
        (encoded(red(), "JPEG", quality=95, progressive=True), 3),
        (encoded(red("CMYK"), "JPEG", quality=95), 12),
        (encoded(red(), "PNG"), 0),
        (encoded(red("P"), "PNG"), 30),
        (encoded(red("RGBA"), "PNG"), 0),
        (encoded(red(), "WEBP", lossless=True), 0),
        (encoded(red("P"), "GIF"), 30),
        (encoded(red(), "BMP"), 0),
        (encoded(red(), "TIFF"), 0),
        (encoded(red(), "TIFF", compression="tiff_lzw"), 0),
    ],
)
def test_ordinary_forms_give_their_colours(data: bytes, tolerance: int) -> None:
    image = decode(data)
    assert image.shape == (3, 30, 40) and str(image.dtype) == "torch.uint8"
    assert np.abs(mean_colour(data) - RED).max() <= tolerance


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_avif() -> None:
    assert np.abs(mean_colour(encoded(red(), "AVIF")) - RED).max() <= 6


def test_grey_has_three_equal_channels() -> None:
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for data in (encoded(grey, "PNG"), encoded(grey, "JPEG", quality=100)):
        image = decode(data)
        assert (image[0] == image[1]).all() and (image[1] == image[2]).all()
        assert np.abs(image[0].numpy().astype(int) - np.asarray(grey)).max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 257 * 100, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(wide), "PNG"))[0].tolist() == [[0, 100, 255]]


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert mean_colour(encoded(clear, "PNG")).tolist() == [255, 255, 255]
    assert mean_colour(encoded(half, "PNG")).tolist() == pytest.approx([127, 127, 127], abs=1)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert mean_colour(encoded(palette, "PNG", transparency=0)).tolist() == [255, 255, 255]
    assert mean_colour(encoded(Image.new("LA", (4, 4), (0, 0)), "PNG")).tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(mean_colour(data) - RED).max() <= 30


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(orientation: int, form: str) -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))
    from PIL import ImageOps

    wanted = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")).astype(int)
    got = decode(data).permute(1, 2, 0).numpy().astype(int)
    assert got.shape == wanted.shape and np.abs(got - wanted).max() <= 4


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0 not really", ""),
        (b"<html></html>", "no image"),
        (encoded(red(size=(200, 200)), "JPEG")[:-300], "truncated"),
        (encoded(Image.effect_noise((200, 200), 50), "PNG")[:-5000], ""),
        (encoded(Image.effect_noise((200, 200), 50), "WEBP")[:-500], ""),
        (encoded(Image.effect_noise((200, 200), 50), "GIF")[:-5000], ""),
    ],
)
def test_what_is_no_whole_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageProblem, match=reason or None):
        decode(data)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(ImageProblem, match="more than 178,956,970 pixels: 20000 x 20000"):
        decode(data)
    with pytest.raises(ImageProblem, match="more than 100"):
        decode(encoded(red(), "PNG"), max_pixels=100)


def test_the_whole_image_is_resized_without_a_crop(tmp_path: Path) -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :150] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    pixels = load_image(tmp_path / "wide.png", 64)
    assert pixels.shape == (64, 64, 3)
    assert pixels[:, :30].min() == 255 and pixels[:, 34:].max() == 0


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"bad\.jpg: no image"):
        load_image(tmp_path / "bad.jpg", 32)
    with pytest.raises(DataError, match=r"gone\.jpg: No such file"):
        load_image(tmp_path / "gone.jpg", 32)
