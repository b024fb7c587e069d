"""Image files whose JPEGs are decoded and resized on a CUDA GPU."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from inat_ft.data.batches import ImageFiles
from inat_ft.errors import UsageError
from inat_ft.images.decode import apply_orientation, read_file
from inat_ft.images.resizing import to_square


def decode_on_gpu(data: list[Tensor]) -> list[Tensor]:
    """Decode JPEG files, uint8 `[bytes]` on the CPU, to uint8 `[3, H, W]` on the GPU, in one batch."""
    decoded: list[Tensor] = decode_jpeg(data, mode=ImageReadMode.RGB, device="cuda")
    return decoded


@dataclass(frozen=True)
class CudaImageFiles(ImageFiles):
    """Image files, decoded on access: uint8 `[B, H, W, 3]`, RGB, on the CPU.

    JPEGs are decoded by nvJPEG and resized on the GPU. Another file, and a batch that nvJPEG rejects, is decoded on the CPU,
    which also reports what is wrong with it.
    """

    decode: Callable[[list[Tensor]], list[Tensor]] = field(default=decode_on_gpu)

    def rows(self, numbers: Tensor, pin: bool = False) -> Tensor:
        """Decode these images. Raises DataError for the first that cannot be decoded, unless `problems` receives it."""
        images = torch.empty(len(numbers), self.size, self.size, 3, dtype=torch.uint8, pin_memory=pin)
        read = dict(enumerate(self.pool.map(self._read, numbers.tolist())))
        jpegs = {place: jpeg for place, jpeg in read.items() if jpeg is not None}
        try:
            decoded = self.decode([data for data, _ in jpegs.values()]) if jpegs else []
        except RuntimeError:  # one damaged file fails the whole batch
            jpegs, decoded = {}, []
        for (place, (_, exif)), pixels in zip(jpegs.items(), decoded, strict=True):
            square = to_square(apply_orientation(pixels, exif), self.size, self.resizing)
            images[place] = square.permute(1, 2, 0).cpu()
        left = [place for place in read if place not in jpegs]
        for _ in self.pool.map(self._load, numbers[left].tolist(), [images[place].numpy() for place in left]):
            pass
        return images

    def _read(self, number: int) -> tuple[Tensor, bytes | None] | None:
        """Return the bytes of a JPEG with the expected hash, and its EXIF data; None for any other file."""
        try:
            data = read_file(self.paths[number])
            with Image.open(io.BytesIO(data)) as image:
                is_jpeg, exif = image.format == "JPEG" and image.mode in ("RGB", "L"), image.info.get("exif")
        except Exception:  # the decoder on the CPU reads the file again and reports the error
            return None
        matches = self.hashes is None or hashlib.sha256(data).hexdigest() == self.hashes[number]
        return (torch.frombuffer(bytearray(data), dtype=torch.uint8), exif) if matches and is_jpeg else None


def cuda_files(files: ImageFiles, device: torch.device) -> CudaImageFiles:
    """Return the same images with the decoder on the GPU. Raises UsageError without a CUDA GPU."""
    if device.type != "cuda":
        raise UsageError(f"--decode cuda requires a CUDA GPU, but the device is {device.type}", "omit --decode")
    return CudaImageFiles(files.paths, files.size, files.pool, files.problems, files.resizing, files.hashes)
