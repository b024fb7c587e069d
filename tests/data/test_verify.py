import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inat_ft.cache.packed_images import Pixels
from inat_ft.data.batches import ImageFiles, StoredRows
from inat_ft.data.manifest import Manifest, read_manifest
from inat_ft.data.verify import verify_hashes
from inat_ft.errors import DataError
from inat_ft.images.decode import load_image, sha256_of
from inat_ft.progress import no_progress
from inat_ft.threads import decoders


@pytest.fixture
def manifest(images: Path, manifest_file: Path, tmp_path: Path) -> Manifest:
    """The manifest of a copy of the images that a test can change."""
    shutil.copytree(images, tmp_path / "photos")
    return read_manifest(manifest_file, tmp_path / "photos")


def hashes(manifest: Manifest, policy: str, cache: Path = Path("cache")):
    return verify_hashes(manifest, ("train", "val"), cache, policy, no_progress)


def repaint(manifest: Manifest, row: int) -> Path:
    file = manifest.root / manifest.paths[row]
    Image.new("RGB", (40, 40), "blue").save(file)
    return file


def packed(manifest: Manifest, names, row: int) -> np.ndarray:
    with decoders(1) as pool:
        files = [manifest.root / manifest.paths[row]]
        pixels = Pixels(files, [names[row]], torch.zeros(1), 32, Path("cache"), pool)
        stored: StoredRows = pixels.packed(lambda done, total: None)
        return stored.rows(torch.tensor([0])).numpy()[0]


def test_accepted_changes_are_cached_under_the_new_hash(manifest: Manifest, images: Path) -> None:
    row = int(manifest.rows("train")[0])
    file = repaint(manifest, row)
    for _ in range(2):  # the second time nothing is remembered of what changed
        names = hashes(manifest, "ignore")
        assert names[row] == sha256_of(file) != manifest.hashes[row]
        assert sum(a != b for a, b in zip(names, manifest.hashes, strict=True)) == 1
    assert (packed(manifest, names, row) == load_image(file, 32)).all()
    shutil.rmtree(manifest.root)
    shutil.copytree(images, manifest.root)
    assert (packed(manifest, hashes(manifest, "error"), row) == load_image(file, 32)).all()


@pytest.mark.parametrize("damage", [b"", b"PK\3\4", b"\x93NUMPY\1\0v\0(((((((", b"noise"])
def test_a_damaged_stat_cache_is_ignored(manifest: Manifest, damage: bytes) -> None:
    assert list(hashes(manifest, "error")) == list(manifest.hashes)
    (file,) = Path("cache/verified").iterdir()
    file.write_bytes(damage)
    assert list(hashes(manifest, "error")) == list(manifest.hashes) and file.read_bytes() != damage


def test_a_pipe_in_place_of_an_image_does_not_block(manifest: Manifest) -> None:
    file = manifest.root / manifest.paths[int(manifest.rows("train")[0])]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="1 image missing or unreadable"):
        hashes(manifest, "error")
    with pytest.raises(DataError, match="not a regular file"):
        load_image(file, 32)


def test_missing_and_changed_images_are_counted_separately(manifest: Manifest) -> None:
    first, second, third = manifest.rows("train")[:3].tolist()
    (manifest.root / manifest.paths[first]).unlink()
    with pytest.raises(DataError, match=r"^1 image missing or unreadable since"):
        hashes(manifest, "error")
    repaint(manifest, second), repaint(manifest, third)
    with pytest.raises(DataError, match=r"^1 image missing or unreadable, 2 images changed since"):
        hashes(manifest, "error")
    assert hashes(manifest, "ignore")[first] == manifest.hashes[first]
    shutil.rmtree(manifest.root)
    with pytest.raises(DataError, match=r"the folder of the images does not exist: .*photos"):
        hashes(manifest, "error")


def test_an_unwritable_cache_folder_is_not_an_error(manifest: Manifest) -> None:
    Path("file").touch()
    assert hashes(manifest, "error", Path("file")) is not None
    repaint(manifest, int(manifest.rows("val")[0]))
    with pytest.raises(DataError, match="1 image changed"):
        hashes(manifest, "error", Path("file"))


def test_an_image_replaced_after_hashing_is_not_cached_under_the_old_hash(manifest: Manifest, images: Path) -> None:
    row = int(manifest.rows("train")[0])
    names = hashes(manifest, "error")
    file = repaint(manifest, row)  # between hashing and decoding
    with pytest.raises(DataError, match=r"changed after it was checked"):
        packed(manifest, names, row)
    shutil.copy(images / manifest.paths[row], file)
    assert (packed(manifest, names, row) == load_image(images / manifest.paths[row], 32)).all()


def test_a_run_stops_if_an_image_changes_and_leaves_caches_correct(
    invoke, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inat_ft.setup

    words = ("train", "--split", manifest.path, "--set", f"data.root={manifest.root}", "--backbone", "resnet18")
    words += ("--weights", "none", "--image-size", "32", "--epochs", "1", "--precision", "fp32", "--device", "cpu")
    file = manifest.root / manifest.paths[int(manifest.rows("train")[0])]
    original, check = file.read_bytes(), inat_ft.setup.verify_hashes

    def replaced_after(*given):
        found = check(*given)
        Image.new("RGB", (40, 40), "blue").save(file)
        return found

    for cache in ("prefix", "packed", "none"):
        with monkeypatch.context() as patched:
            patched.setattr(inat_ft.setup, "verify_hashes", replaced_after)
            ran = invoke(*words, "--cache", cache, "--name", f"{cache}-1")
        assert ran.code == 1 and "changed after it was checked" in ran.err and str(file) in ran.err
        file.write_bytes(original)
    losses = set()
    for cache in ("prefix", "packed", "none"):
        ran = invoke(*words, "--cache", cache, "--name", f"{cache}-2", "--json")
        assert ran.code == 0, ran.err
        losses.add(ran.json["history"][0]["val_loss"])
    assert len(losses) == 1


def test_an_image_that_changes_while_it_is_evaluated_is_refused(manifest: Manifest) -> None:
    row = int(manifest.rows("test")[0])
    with decoders(1) as pool, pytest.raises(DataError, match="changed after it was checked"):
        source = ImageFiles([repaint(manifest, row)], 32, pool, hashes=[manifest.hashes[row]])
        source.rows(torch.tensor([0]))


def test_changed_content_with_the_same_size_and_mtime_is_detected(manifest: Manifest) -> None:
    hashes(manifest, "error")
    row = int(manifest.rows("train")[0])
    file = manifest.root / manifest.paths[row]
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    with pytest.raises(DataError, match="1 image changed"):
        hashes(manifest, "error")
