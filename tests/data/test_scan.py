import os
import random
import subprocess
import sys
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, PngImagePlugin, features
from sklearn.datasets import load_sample_images

from inat_ft.errors import DataError
from inat_ft.images.decode import ImageProblem, decode
from inat_ft.images.jpeg import strip_metadata
from inat_ft.images.scan import scan
from tests.conftest import make_images

PHOTO = Image.fromarray(load_sample_images().images[0]).resize((320, 240))


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    out = BytesIO()
    PHOTO.convert(mode).save(out, form, **options)
    return out.getvalue()


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Whole images, three JPEGs that libjpeg decodes in part, and one that only has bytes too many."""
    data = make_images(tmp_path / "photos", classes=2, each=6)
    whole = encoded("JPEG", quality=90)
    for number in range(40):
        (data / "class0" / f"whole{number}.jpg").write_bytes(whole + bytes([number]))
    middle = len(whole) // 2
    noise = random.Random(0).randbytes(2000).replace(b"\xff", b"\xfe")
    (data / "class0" / "corrupt.jpg").write_bytes(whole[:middle] + noise + whole[middle + 2000 :])
    (data / "class1" / "half.jpg").write_bytes(whole[:middle] + b"\xff\xd9")
    (data / "class1" / "padded.jpg").write_bytes(whole[:-2] + b"\0\0\0\xff\xd9")
    inks = encoded("JPEG", mode="CMYK", quality=90)
    (data / "class1" / "inks.jpg").write_bytes(inks)
    (data / "class1" / "half_the_inks.jpg").write_bytes(inks[: len(inks) // 2] + b"\xff\xd9")
    return data


def test_jpegs_with_lost_pixels_are_left_out_by_name_without_output_of_libjpeg(process, damaged: Path) -> None:
    ran = process("split", damaged, "--no-near", "--workers", "4", "--json", "--quiet")
    assert ran.code == 0 and ran.err == ""
    left = {entry["path"]: entry["reason"] for entry in ran.json["left_out"]}
    assert left.keys() == {"class0/corrupt.jpg", "class1/half.jpg", "class1/half_the_inks.jpg"}
    assert left["class1/half.jpg"] == "truncated or damaged: premature end of data segment"


def parts(jpeg: bytes) -> tuple[int, int]:
    """Where the first table and the picture's data begin."""
    return jpeg.index(b"\xff\xdb"), jpeg.index(b"\xff\xda") + 14


def warned_of(jpeg: bytes) -> dict[str, bytes]:
    """The same picture, with each of the things that libjpeg warns of and that harm nothing."""
    table, picture = parts(jpeg)
    return {
        "bytes before a table": jpeg[:table] + bytes(3) + jpeg[table:],
        "JFIF 2": jpeg[:11] + b"\2\0" + jpeg[13:],
        "Adobe's": jpeg[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x07" + jpeg[table:],
        "parameters of a scan": jpeg[: picture - 3] + bytes(3) + jpeg[picture:],
        "bytes before the end": jpeg[:-2] + bytes(30) + jpeg[-2:],
    }


def test_jpegs_that_lost_step_and_pngs_that_end_in_zeros_are_left_out(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole, still = encoded("JPEG", quality=85), encoded("PNG")
    names = [f"{number}.jpg" for number in range(40)]
    for name in names:
        place = rng.randrange(800, len(whole) - 1500)
        noise = rng.randbytes(60).replace(b"\xff", b"\xfe")
        (tmp_path / name).write_bytes(whole[:place] + noise + whole[place + 60 :])
    for cut in (len(still) // 2, len(still) - 2000):
        (tmp_path / f"{cut}.png").write_bytes(still[:cut] + bytes(len(still) - cut))
        names.append(f"{cut}.png")
    found = scan(tmp_path, names, 10**8, 2, False, lambda done, total: None)
    assert all(found.problems[40:])
    assert found.problems.count(None) < 8, "libjpeg is silent on few"


def test_a_harmless_warning_hides_no_damage(tmp_path: Path) -> None:
    whole = encoded("JPEG", quality=90)
    for name, data in warned_of(whole).items():
        with pytest.raises(ValueError):
            simplejpeg.decode_jpeg(data)
        assert (decode(data) == decode(whole)).all()
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}, cut").write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    names = sorted(path.name for path in tmp_path.iterdir())
    found = scan(tmp_path, names, 10**8, 2, False, lambda done, total: None)
    for name, problem in zip(names, found.problems, strict=True):
        assert bool(problem) == name.endswith(", cut"), (name, problem)


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_rows": 2}, {"comment": b"x"}])
def test_a_jpeg_without_metadata_has_the_same_pixels(options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    data = encoded("JPEG", quality=90, exif=exif, **options)
    assert len(strip_metadata(data)) < len(data) and (decode(strip_metadata(data)) == decode(data)).all()
    assert strip_metadata(data[:200]) == data[:200] and strip_metadata(b"\x89PNG") == b"\x89PNG"


def test_a_jpeg_with_an_unusual_subsampling_has_the_pixels_that_pillow_gives() -> None:
    whole = encoded("JPEG", quality=90, subsampling=0)
    frame = whole.index(b"\xff\xc0")
    odd = whole[: frame + 11] + b"\x31" + whole[frame + 12 :]
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg(odd)
    expected = np.asarray(Image.open(BytesIO(odd)).convert("RGB"))
    assert (decode(odd).permute(1, 2, 0).numpy() == expected).all()


def test_decoding_leaves_the_stderr_of_the_process_alone(damaged: Path, capfd: pytest.CaptureFixture) -> None:
    names = ["class1/half.jpg", "class1/padded.jpg"]
    found = scan(damaged, names, 10**8, 2, False, lambda done, total: os.write(2, b"shown\n"))
    assert found.problems[1] is None and found.problems[0].args[0].startswith("truncated or damaged")
    assert capfd.readouterr().err == "shown\n"


def test_the_bar_is_seen_on_a_terminal(damaged: Path) -> None:
    slow = BytesIO()
    PHOTO.resize((4000, 3000)).save(slow, "JPEG", quality=90)
    for number in range(24):
        (damaged / "class0" / f"slow{number}.jpg").write_bytes(slow.getvalue() + bytes([number]))
    terminal, shown = os.openpty()
    command = [sys.executable, "-m", "inat_ft", "split", str(damaged), "--no-near"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=shown) as process:
        os.close(shown)
        text = b""
        with suppress(OSError):  # how the end of a terminal shows
            while part := os.read(terminal, 4096):
                text += part
    os.close(terminal)
    assert process.returncode == 0
    assert b"81/81" in text and b"premature" not in text
    assert text.count(b"scanning") > 4, "it was not drawn between the start and the end"


def test_out_of_memory_names_the_image_and_does_not_leave_it_out(
    damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("simplejpeg.decode_jpeg", full)
    with pytest.raises(DataError, match=r"not enough memory to decode .*whole0.jpg"):
        scan(damaged, ["class0/whole0.jpg"], 10**8, 2, False, lambda done, total: None)


def with_a_long_comment() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    return encoded("PNG", pnginfo=info)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (encoded("WEBP")[:4000], "truncated or damaged: its header cannot be read"),
        (with_a_long_comment(), "truncated or damaged: a comment in it is larger than 1 MiB"),
        (b"\x89PNG\r\n\x1a\n", "truncated or damaged: only its first bytes are PNG"),
        (b"BLUB", "not an image"),
    ],
)
def test_reasons_are_for_people(data: bytes, reason: str) -> None:
    with pytest.raises(ImageProblem, match=f"^{reason}$"):
        decode(data)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow cannot read AVIF")
def test_half_an_avif_is_no_other_kind_of_file() -> None:
    with pytest.raises(ImageProblem, match="truncated or damaged"):
        decode(encoded("AVIF")[:3000])
