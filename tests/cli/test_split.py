import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from inat_ft_split_check.check import check_manifest

from inat_ft.data.manifest import read_manifest
from inat_ft.errors import DataError, UsageError
from inat_ft.paths import check_writable
from tests.conftest import make_images


@pytest.fixture
def leaking(tmp_path: Path) -> Path:
    """A training image that is also a test image, and a test image with two labels."""
    root = tmp_path / "photos"
    make_images(root / "train", classes=2, each=8, seed=1)
    make_images(root / "test", classes=2, each=4, seed=2)
    shutil.copy(root / "test" / "class0" / "000.png", root / "train" / "class0" / "leak.png")
    shutil.copy(root / "test" / "class0" / "001.png", root / "test" / "class1" / "other.png")
    return root


@pytest.mark.parametrize(("leakage", "done"), [("drop", "left out"), ("keep", "kept")])
def test_the_output_reports_what_happened_to_copies(cli, leaking: Path, leakage: str, done: str) -> None:
    out = cli("split", leaking, "--leakage", leakage, "--no-near").out
    assert f"overlap: 1 image {done}; copies of test images" in out
    assert "equal files: 4 images in 2 groups: test/class0/000.png" in out and "kept in the same subset" not in out
    assert (
        "label conflicts: 1 group of equal files with several labels, left out except in the test set: test/class0"
        in out
    )


def test_kept_copies_do_not_include_label_conflicts(cli, leaking: Path) -> None:
    for label in ("class0", "class1"):
        shutil.copy(leaking / "test" / "class0" / "002.png", leaking / "train" / label / "a.png")
    out = cli("split", leaking, "--leakage", "keep", "--no-near").out
    assert "overlap: 1 image kept" in out and "such as train/class0/leak.png" in out
    assert "overlap: 2 images left out" in out and "such as train/class0/a.png" in out


@contextmanager
def forbidden(folder: Path) -> Iterator[None]:
    """A folder without permissions; root runs as nobody inside the block."""
    mode, is_root = folder.stat().st_mode, os.geteuid() == 0
    folder.chmod(0)
    if is_root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        folder.chmod(mode)


def test_unreadable_files_are_reported_as_missing(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=6)
    assert cli("split", data, "--no-near").code == 0
    tmp_path.chmod(0o755)
    here = Path("photos")  # in a folder that others may not enter from outside
    manifest = replace(read_manifest(Path("splits/photos.csv")), root=here)
    with forbidden(data / "class1"):
        found = check_manifest(manifest, lambda done, total: None)
    assert len(found.missing) == 6 and not found.changed and not found.new
    with forbidden(Path("splits")):
        with pytest.raises(DataError, match=r"cannot read the manifest .*: Permission denied"):
            read_manifest(manifest.path)
        for place in ("x.csv", "photos.csv", "more/x.csv"):
            with pytest.raises(UsageError, match="is not writable"):
                check_writable(Path("splits") / place)


@pytest.mark.parametrize(
    ("redirected", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        (
            ">/dev/full",
            1,
            "inat-ft: cannot write the output: No space left on device\n"
            "  free some space, or redirect the output elsewhere\n",
        ),
    ],
)
def test_streams_that_are_closed_or_full(images: Path, redirected: str, code: int, said: str) -> None:
    line = f'"$@" split {images} --no-near --test-fraction 0 --quiet {redirected}'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "inat_ft"]
    ran = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (code, said)
    assert read_manifest(Path("splits/photos.csv")).counts()["class0"]["train"] == 16


def test_copies_without_a_given_test_set_stay_in_one_subset(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=8)
    shutil.copy(data / "class0" / "000.png", data / "class0" / "copy.png")
    shutil.copy(data / "class1" / "000.png", data / "class0" / "conflict.png")
    out = cli("split", data).out
    assert "equal files: 4 images in 2 groups, kept in the same subset" in out
    assert "1 group of equal files with several labels, left out: " in out


def test_an_unwritable_output_is_refused_before_the_scan(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos", classes=2, each=4)
    (data / "class0" / "bad.png").write_bytes(b"x")
    Path("file").touch()
    Path("pipe").symlink_to("/dev/null")
    for out in ("file/x.csv", "file/more/x.csv", "photos", "/dev/null", "pipe"):
        ran = cli("split", data, "--out", out, "--strict")  # with --strict a scan would end in an error of its own
        assert ran.code == 2 and "--out" in ran.err and "bad.png" not in ran.err and "space" not in ran.err
    if Path("/proc/sys").is_dir():
        assert "is not writable" in cli("split", data, "--out", "/proc/sys/x.csv").err


def test_the_pixel_limit_is_named_if_all_images_exceed_it(cli, tmp_path: Path) -> None:
    ran = cli("split", make_images(tmp_path / "photos", each=3), "--max-pixels", "100")
    assert ran.code == 1 and "40 x 40 is more than 100 pixels" in ran.err and "--max-pixels" in ran.err


def test_a_damaged_cache_is_listed_and_cleared(cli, tmp_path: Path) -> None:
    for name, text in (("a", "{bad"), ("b", "[]"), ("c", '{"key": 3}')):
        (tmp_path / "cache" / "packed" / name).mkdir(parents=True)
        (tmp_path / "cache" / "packed" / name / "key.json").write_text(text)
    ran = cli("cache")
    assert ran.code == 0 and "damaged description" in ran.out and "0.0 KiB in 3 caches" in ran.out
    assert cli("cache", "--clear").code == 0 and "in 0 caches" in cli("cache").out
    ran = cli("cache", "--cache-dir", __file__)
    assert ran.code == 2 and "is not a folder" in ran.err


def test_an_unwritable_cache_is_named_and_the_run_name_remains_free(cli, manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    small = ("train", "--split", manifest_file, "--backbone", "cnn", "--image-size", "32", "--epochs", "1")
    words = (*small, "--mode", "full", "--name", "one")
    ran = cli(*words, "--cache", "packed", "--cache-dir", "file")
    assert ran.code == 1 and "cannot write the cache to file/packed" in ran.err
    assert "--cache-dir" in ran.err and "space" not in ran.err
    again = cli(*words, "--cache", "none", "--cache-dir", "file")
    assert again.code == 0, again.err
    assert (Path("runs/one") / "record.json").is_file()
    once_more = cli(*words, "--cache", "none", "--cache-dir", "file")
    assert once_more.code == 2 and "already exists" in once_more.err


@pytest.mark.slow
def test_the_second_process_that_starts_the_same_run_is_refused(manifest_file: Path) -> None:
    command = [sys.executable, "-m", "inat_ft", "train", "--split", str(manifest_file), "--backbone", "cnn"]
    command += ["--image-size", "32", "--epochs", "1", "--mode", "full", "--name", "one"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], errors


def test_check_finds_files_that_became_usable(cli, leaking: Path) -> None:
    bad = leaking / "train" / "class0" / "bad.png"
    bad.write_bytes(b"x")
    (leaking / "train" / "class0" / "worse.png").write_bytes(b"x")
    assert cli("split", leaking).code == 0
    assert cli("split", "--check", "splits/photos.csv").code == 0
    shutil.copy(leaking / "train" / "class0" / "000.png", bad)
    found = cli("split", "--check", "splits/photos.csv", "--json").json
    assert found == {"missing": [], "changed": [], "new": ["train/class0/bad.png"]}


def test_check_finds_changed_labels_of_a_csv(cli, tmp_path: Path) -> None:
    make_images(tmp_path / "photos", classes=1, each=8)
    rows = "".join(f"photos/class0/{number:03d}.png,{'ab'[number % 2]}\n" for number in range(8))
    Path("list.csv").write_text(f"path,label\n{rows}")
    assert cli("split", "list.csv").code == 0
    Path("list.csv").write_text(f"path,label\n{rows}".replace("003.png,b", "003.png,a"))
    ran = cli("split", "--check", "splits/list.csv", "--json")
    assert ran.code == 1 and ran.json == {"missing": [], "changed": ["photos/class0/003.png"], "new": []}


def test_check_finds_new_rows_of_a_csv(cli, tmp_path: Path) -> None:
    make_images(tmp_path / "photos", classes=1, each=8)
    rows = [f"photos/class0/{number:03d}.png,{'ab'[number % 2]}\n" for number in range(8)]
    Path("list.csv").write_text("path,label\n" + "".join(rows[:7]))
    assert cli("split", "list.csv").code == 0
    assert cli("split", "--check", "splits/list.csv").code == 0
    Path("list.csv").write_text("path,label\n" + "".join(rows))
    found = cli("split", "--check", "splits/list.csv", "--json").json
    assert found == {"missing": [], "changed": [], "new": ["photos/class0/007.png"]}
