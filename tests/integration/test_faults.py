"""Commands on a full or read-only disk, and other faults of the machine: one sentence, and every earlier file stays valid."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from inat_ft.records import read_record
from tests.conftest import make_images

pytestmark = pytest.mark.slow

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1;

static int is_below(const char *path) {
    const char *folder = getenv("FAULT_FOLDER");
    char full[PATH_MAX], here[PATH_MAX];
    if (!folder || !path) return 0;
    if (path[0] != '/' && getcwd(here, sizeof here)) {
        snprintf(full, sizeof full, "%s/%s", here, path);
        path = full;
    }
    return !strncmp(path, folder, strlen(folder));
}

static int fails(void) {
    errno = atoi(getenv("FAULT_ERRNO"));
    return -1;
}

#define OPEN(name)                                                                        \
    int name(const char *path, int flags, ...) {                                          \
        va_list rest;                                                                     \
        va_start(rest, flags);                                                            \
        mode_t mode = va_arg(rest, mode_t);                                               \
        va_end(rest);                                                                     \
        if (!getenv("FAULT_BYTES") && flags & (O_WRONLY | O_RDWR) && is_below(path)) return fails(); \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);                    \
        return real(path, flags, mode);                                                   \
    }
OPEN(open)
OPEN(open64)

int mkdir(const char *path, mode_t mode) {
    if (!getenv("FAULT_BYTES") && is_below(path) && access(path, F_OK)) return fails();
    return ((int (*)(const char *, mode_t))dlsym(RTLD_NEXT, "mkdir"))(path, mode);
}

ssize_t write(int file, const void *data, size_t size) {
    char link[64], path[PATH_MAX];
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    if (getenv("FAULT_BYTES")) {
        if (left < 0) left = atol(getenv("FAULT_BYTES"));
        snprintf(link, sizeof link, "/proc/self/fd/%d", file);
        ssize_t length = readlink(link, path, sizeof path - 1);
        path[length < 0 ? 0 : length] = 0;
        if (is_below(path)) {
            if (!left) return fails();
            size = (long)size > left ? left : size;
            left -= size;
        }
    }
    return real(file, data, size);
}
"""
CNN = (
    "--split",
    "splits/photos.csv",
    "--backbone",
    "cnn",
    "--set",
    "model.filters=16",
    "--image-size",
    "32",
    "--epochs",
    "3",
)
SWEEP = ("--set", "model.backbone=cnn", "--set", "model.filters=16", "--set", "data.image_size=32")
SWEEP = (*SWEEP, "--set", "optim.epochs=1", "--set", "data.split=splits/photos.csv", "--name", "s")
COMMANDS = {
    "split": ("split", "photos", "--out", "target/photos.csv"),
    "train": ("train", *CNN, "--runs-dir", "target/runs"),
    "cache": ("train", *CNN, "--cache-dir", "target/cache"),
    "eval": ("eval", "target/r"),
    "export": ("export", "target/r", "--format", "torch-export"),
    "predict": ("predict", "target/r", "photos/class0", "--out", "target/predictions.csv"),
    "html": ("compare", "runs/a", "runs/b", "--html", "target/report.html"),
    "create": ("sweep", "create", *SWEEP, "--sweeps-dir", "target/sweeps"),
    "sweep": ("sweep", "run", "s", "--count", "2", "--sweeps-dir", "target/sweeps"),
}
FROZEN = ("--backbone", "cnn", "--set", "model.filters=16", "--set", "data.image_size=32")
LATER = {
    "folds": ("train", *CNN, "--folds", "2", "--runs-dir", "target/runs"),
    "tune": ("tune", "photos", "--budget", "30s", *FROZEN, "--out", "target/tune", "--runs-dir", "target/runs"),
    "curve": ("learning-curve", "--split", "splits/photos.csv", *FROZEN, "--draws", "2", "--out", "target/curve"),
    "audit": ("audit", "splits/photos.csv", *FROZEN, "--out", "target/audit"),
    "suggest": ("suggest", "runs/a", "more", "--out", "target/suggest"),
    "folder": ("export", "target/r", "--format", "hub-folder", "--out", "target/exported"),
    "overview": ("runs", "html", "--out", "target/runs.html"),
    "fetch": ("fetch", "digits", "--to", "target/data"),
}
ALL = COMMANDS | LATER
DISKS = {
    "full": {"FAULT_ERRNO": str(errno.ENOSPC), "FAULT_BYTES": "0"},
    "quota": {"FAULT_ERRNO": str(errno.EDQUOT), "FAULT_BYTES": "1500"},
    "fills": {"FAULT_ERRNO": str(errno.ENOSPC), "FAULT_BYTES": "100000"},
    "read-only": {"FAULT_ERRNO": str(errno.EROFS)},
    "forbidden": {"FAULT_ERRNO": str(errno.EACCES)},
}


def inat_ft(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "inat_ft", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with images, a manifest, trained and evaluated runs, a sweep, and a library that makes system calls fail."""
    home = tmp_path_factory.mktemp("project")
    make_images(home / "photos")
    make_images(home / "more", each=3, seed=1)
    (home / "faults.c").write_text(SOURCE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "faults.so", "faults.c", "-ldl"], cwd=home, check=True)
    before = Path.cwd()
    os.chdir(home)
    try:
        for words in (
            ("split", "photos", "--test-fraction", "0.25"),
            ("train", *CNN, "--name", "a"),
            ("train", *CNN, "--name", "b", "--seed", "1"),
            ("eval", "runs/a"),
            ("eval", "runs/b"),
            COMMANDS["create"],
        ):
            ran = inat_ft(*words, INAT_FT_CACHE_DIR="cache")
            assert ran.returncode == 0, ran.stderr
    finally:
        os.chdir(before)
    shutil.copytree(home / "runs" / "a", home / "target" / "r")
    for name in ("record.json", "config.yaml"):
        file = home / "target" / "r" / name
        file.write_text(file.read_text().replace("../../splits", str(home / "splits")))
    return home


def contents(folder: Path) -> dict[str, bytes]:
    """All files but locks, and the journal and folders of runs of a sweep, which may grow."""
    files = (file for file in folder.rglob("*") if file.is_file() and "lock" not in file.name)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files if "journal" not in file.name}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("name", "disk"),
    [
        *((name, disk) for name in COMMANDS for disk in DISKS),
        *(
            (name, disk)
            for name in LATER
            for disk in ("full", "fills", "read-only")
            if (name, disk) != ("tune", "fills")
        ),
    ],
)
def test_a_disk_that_cannot_be_written(project: Path, name: str, disk: str) -> None:
    shutil.copytree(project, Path.cwd(), dirs_exist_ok=True)
    if name == "create":
        shutil.rmtree("target/sweeps")
    before = contents(Path("target"))
    folder = str(Path("target").absolute())
    ran = inat_ft(*ALL[name], LD_PRELOAD=str(Path("faults.so").absolute()), FAULT_FOLDER=folder, **DISKS[disk])
    print(ran.stdout, ran.stderr)
    after = contents(Path("target"))
    if ran.returncode == 0:
        assert disk in ("quota", "fills") and name in (
            "split",
            "predict",
            "html",
            "create",
            "eval",
            "curve",
            "audit",
            "suggest",
            "overview",
            "folder",
        )  # it is large enough
        return
    assert ran.returncode == 1
    assert "bug in inat-ft" not in ran.stderr and "Traceback" not in ran.stderr
    problem = next(line for line in ran.stderr.splitlines() if line.startswith("inat-ft: "))
    assert (
        "target/" in problem and os.strerror(int(DISKS[disk]["FAULT_ERRNO"])) in problem
    ) or "disk is full" in problem
    if name == "eval" and disk == "fills":  # the figures are written after the record
        read_record(Path("target/r"))
        before.pop("r/record.json")
    assert {file: after.get(file) for file in before} == before
    assert not [file for file in after if file.endswith(".tmp")]


@pytest.fixture
def place(project: Path) -> None:
    """A copy of the project in the working folder."""
    shutil.copytree(project, Path.cwd(), dirs_exist_ok=True)


def refused(ran: subprocess.CompletedProcess[str], *said: str) -> None:
    """Check that a command failed with one sentence."""
    assert ran.returncode == 1, ran.stderr
    assert all(words in ran.stderr for words in said), ran.stderr
    assert "bug in inat-ft" not in ran.stderr and "Traceback" not in ran.stderr


IMAGE = "photos/class0/003.png"
LOSSES = {
    "image-vanishes": (f"os.remove({IMAGE!r})", f"{IMAGE}: No such file"),
    "image-changes": (f"shutil.copy('photos/class1/003.png', {IMAGE!r})", "changed after it was checked"),
    "image-is-cut": (f"os.truncate({IMAGE!r}, 100)", "changed after it was checked"),
    "image-becomes-a-folder": (f"os.remove({IMAGE!r}); os.mkdir({IMAGE!r})", f"{IMAGE}: Is a directory"),
    "images-vanish": ("shutil.rmtree('photos')", "No such file"),
    "run-vanishes": ("shutil.rmtree('runs/new')", "runs/new"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("loss", LOSSES)
def test_files_that_vanish_or_change_during_training(loss: str) -> None:
    act, said = LOSSES[loss]
    script = f"""
import os, shutil
from inat_ft.cli import main, train
from inat_ft.training import TrainCallbacks

def on_epoch(epoch):
    if epoch.epoch == 1:
        {act}

train.callbacks = lambda config: TrainCallbacks(on_epoch=on_epoch)
main.run()
"""
    command = [sys.executable, "-c", script, "train", *CNN, "--name", "new", "--cache", "none"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if loss == "run-vanishes":  # its folder is created again, with a valid run
        assert ran.returncode == 0, ran.stderr
        assert len(read_record(Path("runs/new"))[0].history) == 3
        return
    refused(ran, said, "resume: inat-ft train --resume runs/new")
    assert not Path("runs/new/record.json").exists()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["split", "train", "eval", "predict", "sweep", "folds", "curve", "suggest", "folder"])
def test_few_file_descriptors(name: str) -> None:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (64, 64))
    ran = subprocess.run(
        [sys.executable, "-m", "inat_ft", *ALL[name]],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("train", 0.3),
        ("train", 2),
        ("train", 3),
        ("train", 4),
        ("curve", 3),
        ("predict", 2),
        ("split", 1),
    ],
)
def test_little_memory(name: str, gigabytes: float) -> None:
    size = int(gigabytes * 2**30)
    limit = partial(resource.setrlimit, resource.RLIMIT_AS, (size, size))
    train = ("train", *CNN, "--name", "new", "--batch-size", "36")
    command = [sys.executable, "-m", "inat_ft", *(ALL | {"train": train})[name]]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    ran = subprocess.run(command, preexec_fn=limit, env=environment, capture_output=True, text=True, check=False)
    print(ran.stderr)
    if ran.returncode == 0:
        read_record(Path("runs/new" if name == "train" else "runs/a"))
    elif "cannot allocate memory for thread-local data" in ran.stderr:  # glibc ends the process
        assert not Path("runs/new/record.json").exists()
    else:
        refused(ran, "memory")


@pytest.mark.usefixtures("place")
def test_one_name_is_used_once_by_processes_that_start_together() -> None:
    command = [sys.executable, "-m", "inat_ft", "train", *CNN, "--name", "new"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=900)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], errors
    (said,) = (error for error, process in zip(errors, processes, strict=True) if process.returncode)
    assert "another process is using the run runs/new" in said or "the run runs/new already exists" in said
    assert len(read_record(Path("runs/new"))[0].history) == 3


@pytest.mark.usefixtures("place")
def test_ten_processes_share_a_cache() -> None:
    frozen = ("--backbone", "resnet18", "--weights", "none", "--mode", "head", "--image-size", "32", "--epochs", "2")
    command = [sys.executable, "-m", "inat_ft", "train", "--split", "splits/photos.csv", *frozen, "--precision", "fp32"]
    environment = {**os.environ, "INAT_FT_CACHE_DIR": "cold", "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, "--name", f"n{number}"], env=environment) for number in range(10)]
    assert [process.wait(timeout=900) for process in processes] == [0] * 10
    models = {Path(f"runs/n{number}/model.safetensors").read_bytes() for number in range(10)}
    assert len(models) == 1
