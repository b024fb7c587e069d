"""`inat-ft split --pack`: the packed cache that is written during the scan."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from inat_ft_pack.packing import Packing
from PIL import Image

import inat_ft
from inat_ft.cache.array_store import Writer
from inat_ft.cache.packed_images import packed_store
from inat_ft.errors import DataError, UsageError
from inat_ft.images.decode import load_image
from inat_ft.images.resizing import Resizing

FORMS = {
    "32": (32, Resizing()),
    "24:crop": (24, Resizing("crop")),
    "40:pad:bicubic": (40, Resizing("pad", "bicubic")),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with a JPEG, a rotated JPEG, a PNG with transparency, a copy, a damaged file, and boxes in a CSV."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows = ["path,label,x,y,w,h"]
    for number in range(8):
        pixels = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8)).resize((96, 60))
        file = root / f"{number}.jpg"
        exif = Image.Exif()
        exif[0x0112] = 6 if number % 3 == 0 else 1
        pixels.save(file, quality=90, exif=exif)
        rows.append(f"{file.name},{'ab'[number % 2]},,,,")
        rows.append(f"{file.name},{'ab'[number % 2]},0.1,0.2,0.5,0.6")
    Image.fromarray(rng.integers(0, 255, (70, 50, 4), np.uint8)).save(root / "clear.png")
    shutil.copy(root / "1.jpg", root / "copy.jpg")
    (root / "broken.jpg").write_bytes((root / "2.jpg").read_bytes()[:500])
    rows += ["clear.png,a,,,,", "copy.jpg,b,,,,", "broken.jpg,a,,,,"]
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root


def test_rows_are_those_that_the_loader_decodes(photos: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    split = inat_ft.split(
        photos / "list.csv", tmp_path / "p.csv", pack=list(FORMS), cache_dir=tmp_path / "cache", log=lines.append
    )
    manifest = split.manifest
    assert len(manifest.paths) == 18
    for size, resizing in FORMS.values():
        rows, numbers = packed_store(tmp_path / "cache", size, resizing).read(manifest.hashes)
        for path, number in zip(manifest.paths, numbers, strict=True):
            assert np.array_equal(rows[number], load_image(manifest.root / path, size, resizing=resizing))
    assert sum(line.startswith("packed: 17 images") for line in lines) == 3  # one is a copy


def test_a_training_reads_them_and_decodes_nothing(photos: Path, tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    split = inat_ft.split(photos / "list.csv", tmp_path / "p.csv", pack=[32], cache_dir=cache)
    places = {"runs_dir": tmp_path / "runs", "cache_dir": cache}
    options = {
        "backbone": "resnet18",
        "weights": "none",
        "image_size": 32,
        "epochs": 1,
        "batch_size": 8,
        "precision": "fp32",
    }
    monkeypatch.setattr("inat_ft.data.batches.load_image", None)
    for mode in ("head", "full"):
        assert inat_ft.train(split=split, mode=mode, **options, **places).record.history
    with pytest.raises(TypeError):
        inat_ft.train(split=split, mode="full", **{**options, "image_size": 40}, **places)


def test_rows_of_an_interrupted_scan_are_kept_and_completed(photos: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        raise Stop

    arguments = photos / "list.csv", tmp_path / "p.csv"
    with pytest.raises(Stop):
        inat_ft.split(*arguments, pack=["32"], cache_dir=tmp_path, progress=stop)
    store = packed_store(tmp_path, 32)
    assert len(store.digests()) * store.row_bytes == (store.folder / "rows.bin").stat().st_size > 0
    assert not (tmp_path / "p.csv").exists()
    manifest = inat_ft.split(*arguments, pack=["32"], cache_dir=tmp_path).manifest
    assert store.missing(manifest.hashes) == [] and len(store.digests()) == 17


def test_packing_ends_with_a_warning_when_the_disk_is_full(photos: Path, tmp_path: Path, monkeypatch) -> None:
    write, lines = Writer.write, list[str]()

    def fill(writer: Writer, block: np.ndarray) -> None:
        if writer.written == 3:
            raise OSError(28, os.strerror(28))
        write(writer, block)

    monkeypatch.setattr(Writer, "write", fill)
    split = inat_ft.split(photos / "list.csv", tmp_path / "p.csv", pack=["32"], cache_dir=tmp_path, warn=lines.append)
    assert split.path.exists() and len(packed_store(tmp_path, 32).digests()) == 3
    assert any("stopped, because the disk is full" in line and "packed: 3 images" in line for line in lines)


def test_too_large_a_cache_is_refused_before_the_scan(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("inat_ft.paths.shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(DataError, match="needs"), Packing(["32"], tmp_path, 5, print, print):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["8", "2000", "x", "224:stretch", "224:crop:nearest", "-1", ""])
def test_sizes_that_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        Packing([text], tmp_path, 1, print, print)


def test_equal_images_are_added_once_from_several_threads(tmp_path: Path) -> None:
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    with Packing(["32", "32:squash"], tmp_path, 40, print, print) as packing:
        for number in range(40):
            packing.add(f"{number % 4:064x}", image + number % 4)
    store = packed_store(tmp_path, 32)
    rows, numbers = store.read([f"{number:064x}" for number in range(4)])
    assert len(rows) == 4 and rows[numbers][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
