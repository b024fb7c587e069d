import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin, features

from inat_ft.data.batches import ImageFiles
from inat_ft.errors import DataError
from inat_ft.images import decode as decoding
from inat_ft.images.decode import ImageProblem, TooLargeError, decode, load_image, read_file
from inat_ft.images.jpeg import strip_metadata

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


def test_bytes_for_transparency_that_a_bmp_leaves_empty_are_none() -> None:
    masks = struct.pack("<4L", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<LllHHLLllLL", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks + bytes(52)
    for alpha, green in ((0, 200), (255, 200)):
        pixels = bytes([10, 200, 30, alpha]) * 2
        data = b"BM" + struct.pack("<LHHL", 14 + len(header) + 8, 0, 0, 14 + len(header)) + header + pixels
        assert decode(data)[:, 0, 0].tolist() == [30, green, 10]


def test_a_tiff_that_pillow_misreads_is_refused() -> None:
    entries = (
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 206),
        (277, 3, 1, 3), (278, 3, 1, 2), (279, 4, 3, 218), (284, 3, 1, 2),
    )  # fmt: skip
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries) + bytes(4)
    data = (struct.pack("<2sHL", b"II", 42, 8) + table).ljust(200, b"\0")
    data += struct.pack("<3H3L3L", 16, 16, 16, 230, 238, 246, 8, 8, 8) + bytes(24)
    with pytest.raises(ImageProblem, match="16 bits in separate planes"):
        decode(data)


@pytest.mark.parametrize("transform", [0, 2])
@pytest.mark.parametrize("adobe", [True, False])
def test_jpegs_of_four_inks_are_as_pillow_makes_them(transform: int, adobe: bool) -> None:
    inks = np.random.default_rng(0).integers(0, 256, (4, 4, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)
    marker = data.index(b"\xff\xee\0\x0eAdobe")
    seen = data[:marker] + (data[marker : marker + 15] + bytes([transform])) * adobe + data[marker + 16 :]
    expected = np.asarray(Image.open(BytesIO(seen)).convert("RGB"))
    assert np.ptp(expected) > 200 and (decode(seen).permute(1, 2, 0).numpy() == expected).all()


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


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(bits: int, colours: int, row: bytes, width: int, key: tuple[int, ...]) -> bytes:
    """A PNG of one row, in which the colour `key` is transparent; Pillow writes none such."""
    header = struct.pack(">IIBBBBB", width, 1, bits, colours, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", struct.pack(f">{len(key)}H", *key)), (b"IDAT", zlib.compress(b"\0" + row))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


@pytest.mark.parametrize(
    ("data", "red"),
    [
        (png(8, 0, b"\x03\x0c", 2, (12,)), [3, 255]),
        (png(16, 0, b"\x01\x02\x01\x03", 2, (0x0102,)), [255, 1]),
    ],
)
def test_the_transparent_colour_of_a_gray_png_becomes_white(data: bytes, red: list[int]) -> None:
    assert decode(data)[0].tolist() == [red]


def tiff(bits: int, white_is_zero: bool, row: bytes, width: int, signed: bool = False) -> bytes:
    """A TIFF of one grey row."""
    tags = [
        (256, width),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, 0 if white_is_zero else 1),
        (273, 8),
        (277, 1),
        (278, 1),
    ]
    tags += [(279, len(row)), (339, 2 if signed else 1)]
    table = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(row)) + row + struct.pack("<H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize(
    ("data", "grey"),
    [
        (tiff(8, True, b"\x00\xff", 2), [255, 0]),
        (tiff(16, False, struct.pack("<2H", 65535, 257 * 7), 2), [255, 7]),
        (tiff(16, True, struct.pack("<2H", 65535, 257 * 7), 2), [0, 248]),
        (tiff(12, False, b"\xff\xf8\x00", 2), [255, 127]),
    ],
)
def test_grey_of_a_tiff_is_as_bright_as_it_says(data: bytes, grey: list[int]) -> None:
    assert decode(data)[0].tolist() == [grey]


@pytest.mark.parametrize(
    "data",
    [tiff(16, False, bytes(4), 2, signed=True), tiff(32, False, bytes(8), 2), tiff(32, False, bytes(8), 2, True)],
)
def test_grey_of_undefined_range_is_refused(data: bytes) -> None:
    with pytest.raises(ImageProblem, match="range is not defined"):
        decode(data)


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
@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "I;16"),
        ("WEBP", "RGB"),
        ("TIFF", "RGB"),
        ("XMP", "RGB"),
    ],
)
def test_exif_rotation_is_applied(orientation: int, form: str, mode: str) -> None:
    image = Image.new("RGB", (64, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a.transpose(1, 0, 2), 2), 8: np.rot90,
    }.get(orientation, np.asarray)(np.asarray(image))  # fmt: skip
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    data = encoded(image.convert(mode), form.replace("XMP", "JPEG"), exif=exif, quality=95, lossless=True)
    if form == "XMP":  # as Lightroom and others write it, before EXIF
        packet = b"http://ns.adobe.com/xap/1.0/\0<x/>"
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet + data[2:]
    got = decode(data).permute(1, 2, 0).numpy().astype(int)
    assert got.shape == turned.shape and np.abs(got - turned).max() <= 4


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("PNG", "RGB"), ("TIFF", "RGB")]
)
def test_of_xmp_no_rotation_is_taken_as_in_browsers(form: str, mode: str) -> None:
    packet = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    options = {"PNG": {"pnginfo": info}, "TIFF": {"tiffinfo": {700: packet.encode()}}}.get(
        form, {"xmp": packet.encode()}
    )
    data = encoded(red(mode), form, **options)
    assert Image.open(BytesIO(data)).getexif()[0x0112] == 6, "Pillow does take it"
    assert decode(data).shape == (3, 30, 40)


def test_damaged_exif_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(red(), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data.replace(b"MM\0*", b"MM\0\xff")).shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\xff\xd8\xff\xe0 not really", ""),
        (b"<html></html>", "not an image"),
        (b"RIFF\x84\0\0\0WEBPVP8X\x0a\0", "truncated or damaged"),
        (encoded(red(size=(200, 200)), "JPEG")[:-300], "truncated"),
        (encoded(Image.effect_noise((200, 200), 50), "PNG")[:-5000], ""),
        (encoded(Image.effect_noise((200, 200), 50), "WEBP")[:-500], ""),
        (encoded(Image.effect_noise((200, 200), 50), "GIF")[:-5000], ""),
    ],
)
def test_an_incomplete_image_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ImageProblem, match=reason or None):
        decode(data)


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(ImageProblem, match="20000 x 20000 is more than 178,956,970 pixels"):
        decode(data)
    picture = encoded(Image.new("1", (2000, 2000)), "PNG")  # in an icon, which names another size
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(picture), 22) + picture
    with pytest.raises(ImageProblem, match="not an image"):
        decode(icon)
    with pytest.raises(ImageProblem, match="more than 100"):
        decode(encoded(red(), "PNG"), max_pixels=100)


@pytest.mark.slow
def test_the_limit_is_that_of_split_and_not_one_of_training(tmp_path: Path) -> None:
    data, file = encoded(Image.new("1", (18_000, 10_000)), "PNG"), tmp_path / "large.png"
    file.write_bytes(data)
    assert load_image(file, 8).shape == (8, 8, 3)
    with ThreadPoolExecutor(1) as pool:
        assert ImageFiles([file], 8, pool).rows(torch.tensor([0])).shape == (1, 8, 8, 3)
        problems: dict[int, DataError] = {}
        ImageFiles([file], 8, pool, problems).rows(torch.tensor([0]))  # of nobody knows where
    assert "more than 178,956,970 pixels" in problems[0].message


def test_the_whole_image_is_resized_without_a_crop(tmp_path: Path) -> None:
    image = np.zeros((100, 300, 3), np.uint8)
    image[:, :150] = 255
    Image.fromarray(image).save(tmp_path / "wide.png")
    pixels = load_image(tmp_path / "wide.png", 64)
    assert pixels.shape == (64, 64, 3)
    assert pixels[:, :30].min() == 255 and pixels[:, 34:].max() == 0


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"bad\.jpg: not an image"):
        load_image(tmp_path / "bad.jpg", 32)
    with pytest.raises(DataError, match=r"gone\.jpg: No such file"):
        load_image(tmp_path / "gone.jpg", 32)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(bytes(2**20 + 1))
    monkeypatch.setattr(decoding, "_MAX_BYTES", 2**20)
    with pytest.raises(TooLargeError, match="too large: more than 1 MiB"):
        read_file(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(bytes(2**20))
    assert len(read_file(tmp_path / "b.png")) == 2**20


def test_fill_bytes_and_comments_of_a_jpeg_are_removed_and_the_pixels_stay() -> None:
    plain = encoded(red(), "JPEG", quality=95)
    tables = plain.index(b"\xff\xdb")
    odd = plain[:tables] + b"\xff\xfe\x00\x05abc" + b"xy" + b"\xff\xff\xff" + plain[tables:]
    stripped = strip_metadata(odd)
    assert stripped == strip_metadata(plain) and b"abc" not in stripped
    assert (decode(stripped) == decode(plain)).all()
    assert strip_metadata(b"no JPEG") == b"no JPEG" and strip_metadata(plain[:tables]) == plain[:tables]
