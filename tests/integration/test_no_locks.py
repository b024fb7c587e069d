"""A file system without locks, such as NFS without its lock service: one sentence, and nothing left behind."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = "#include <errno.h>\nint flock(int file, int how) { errno = ENOLCK; return -1; }\n"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_missing_locks_are_reported_and_nothing_is_left(process, manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "locks.c").write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "locks.so", "locks.c"], cwd=tmp_path, check=True)
    without_locks = {"LD_PRELOAD": str(tmp_path / "locks.so")}
    small = ("--backbone", "cnn", "--image-size", 32, "--set", "model.filters=16", "--epochs", 1, "--cache", "none")
    for words in (
        ("train", "--split", manifest_file, *small, "--name", "r"),
        ("sweep", "create", "--set", "model.backbone=cnn", "--set", f"data.split={manifest_file}", "--name", "s"),
    ):
        ran = process(*words, **without_locks)
        assert ran.code == 1, ran.err
        assert "has no file locks" in ran.err and "local disk" in ran.err and "bug in inat-ft" not in ran.err
    assert not Path("runs/r").exists() and not Path("sweeps/s").exists()
