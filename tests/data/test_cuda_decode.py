"""The JPEG decoder on a GPU, with torchvision's decoder on the CPU in the place of nvJPEG."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from inat_ft_cuda_decode.files import CudaImageFiles
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from inat_ft.cache.packed_images import pixels_key
from inat_ft.data.batches import ImageFiles
from inat_ft.errors import DataError, UsageError
from inat_ft.images.decode import sha256_of
from inat_ft.training import train


def on_cpu(data: list[torch.Tensor]) -> list[torch.Tensor]:
    return [decode_jpeg(each, mode=ImageReadMode.RGB) for each in data]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two JPEGs, the second one rotated by EXIF, a grayscale JPEG and a PNG."""
    rng, made = np.random.default_rng(0), []
    smooth = rng.integers(0, 255, (6, 9, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((90, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, kind, more in (
        ("a.jpg", "RGB", {}),
        ("b.jpg", "RGB", {"exif": exif.tobytes()}),
        ("c.jpg", "L", {}),
        ("d.png", "RGB", {}),
    ):
        made.append(tmp_path / name)
        image.convert(kind).save(made[-1], **more)
    return made


def decoded(files: list[Path], kind: type[ImageFiles], **more: object) -> torch.Tensor:
    with ThreadPoolExecutor(2) as pool:
        source = kind(files, 32, pool, hashes=[sha256_of(file) for file in files], **more)
        return source.rows(torch.arange(len(files)))


def test_the_pixels_are_those_of_the_decoder_on_the_cpu(files: list[Path]) -> None:
    seen: list[int] = []

    def decode(data: list[torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(data))
        return on_cpu(data)

    there = decoded(files, CudaImageFiles, decode=decode)
    assert seen == [3]  # the PNG is decoded on the CPU
    assert (there.int() - decoded(files, ImageFiles).int()).abs().max() <= 2


def test_a_rejected_batch_is_decoded_on_the_cpu_which_reports_damaged_files(files: list[Path], tmp_path: Path) -> None:
    def refuse(data: list[torch.Tensor]) -> list[torch.Tensor]:
        raise RuntimeError("nvjpegDecode failed")

    assert torch.equal(decoded(files, CudaImageFiles, decode=refuse), decoded(files, ImageFiles))
    damaged = tmp_path / "e.jpg"
    damaged.write_bytes(files[0].read_bytes()[:600])
    with pytest.raises(DataError, match=r"e\.jpg"):
        decoded([*files, damaged], CudaImageFiles, decode=refuse)


def test_a_changed_file_is_refused(files: list[Path]) -> None:
    with ThreadPoolExecutor(1) as pool:
        source = CudaImageFiles(files[:1], 32, pool, hashes=["0" * 64], decode=on_cpu)
        with pytest.raises(DataError, match="changed"):
            source.rows(torch.arange(1))


def test_the_option_needs_a_cuda_gpu(config, directories) -> None:
    with pytest.raises(UsageError, match="--decode cuda requires a CUDA GPU, but the device is cpu"):
        train(config(compute__decode="cuda", compute__device="cpu"), directories)


def test_caches_of_the_two_decoders_are_separate() -> None:
    assert pixels_key(224) != pixels_key(224, decoder="cuda")
