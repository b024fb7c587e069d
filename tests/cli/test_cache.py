"""`inat-ft cache` and the checks of `inat-ft doctor` on machines that lack something."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inat_ft_doctor import checks
from inat_ft_doctor.checks import run_checks

from inat_ft.cache.array_store import open_store
from inat_ft.errors import UsageError
from inat_ft.models.weights import weights_file


def fill(kind: str, key: dict[str, object], rows: int) -> Path:
    """Write a store of rows of 1,024 bytes into the cache of the test."""
    store = open_store(Path("cache"), kind, key, (256,), "float32")
    hashes = [f"{number:064x}" for number in range(rows)]
    store.ensure(hashes, lambda missing: iter([np.zeros((len(missing), 256), np.float32)]), lambda done, total: None)
    return store.folder


@pytest.fixture
def stores() -> dict[str, Path]:
    prefix = {"stages": ["conv1", "layer4"], "form": "plain", "size": 64}
    return {"packed": fill("packed", {"size": 32}, 2), "prefix": fill("prefix", prefix, 5)}


def test_caches_are_listed_with_what_they_contain_and_cleared_by_kind(cli, stores: dict[str, Path]) -> None:
    shown = cli("cache").out
    assert "32 x 32 pixels" in shown and "conv1..layer4, plain, 64 x 64 pixels" in shown and "2 caches" in shown
    found = cli("cache", "--json", "--kind", "prefix").json
    assert [(each["kind"], each["rows"], each["bytes"] > 5 * 1024) for each in found["caches"]] == [("prefix", 5, True)]
    cleared = cli("cache", "--clear", "--kind", "prefix")
    assert cleared.code == 0 and cleared.out.rstrip().endswith("in 1 cache, cleared")
    assert not (stores["prefix"] / "rows.bin").exists() and (stores["packed"] / "rows.bin").exists()
    assert "1 cache" in cli("cache").out and cli("cache", "--clear").code == 0
    assert cli("cache").out.rstrip().endswith("in 0 caches")


def test_a_damaged_cache_can_be_listed_and_cleared(cli, stores: dict[str, Path]) -> None:
    for text in ("{", '{"key": 3}', "[]"):
        (stores["packed"] / "key.json").write_text(text)
        assert "damaged description" in cli("cache").out
    assert cli("cache", "--clear").code == 0 and not (stores["packed"] / "key.json").exists()


def test_a_kind_or_a_folder_that_does_not_exist_is_refused(cli) -> None:
    assert "unknown kind 'prefixes'" in cli("cache", "--kind", "prefixes").err
    Path("file").touch()
    ran = cli("cache", "--cache-dir", "file")
    assert ran.code == 2 and "file is not a folder" in ran.err


def found() -> dict[str, checks.Check]:
    return {check.name: check for check in run_checks(Path("runs"), Path("cache"))}


def test_what_is_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import get_model_weights

    file = weights_file(get_model_weights("resnet50").DEFAULT.url)
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(checks, "find_spec", lambda module: module)
    monkeypatch.setattr(checks, "find_manifest", lambda: Path("splits/photos.csv"))
    monkeypatch.setattr(checks, "has_compiler", lambda: True)
    each = found()
    assert (each["weights"].status, each["split"].detail) == ("ok", "splits/photos.csv")
    assert each["weights"].detail == f"those of resnet50 are downloaded: {file.name}"
    assert (each["extras"].status, each["extras"].hint) == ("ok", "") and each["compiler"].status == "ok"


def test_what_is_missing_is_named_with_what_to_do(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(device: str, precision: str) -> None:
        raise UsageError("the GPU has no kernels", "install another build of torch")

    monkeypatch.setattr(checks, "find_spec", lambda module: None if module in ("timm", "onnx") else module)
    monkeypatch.setattr(checks, "has_compiler", lambda: False)
    monkeypatch.setattr(checks, "choose_compute", none)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**30))
    each = found()
    assert each["extras"].hint == "pip install 'inat-ft[timm,onnx]'" and "timm" not in each["extras"].detail
    assert (each["compiler"].status, each["compiler"].hint) == ("note", "install g++")
    assert (each["device"].status, each["device"].detail) == ("problem", "the GPU has no kernels")
    assert (each["runs"].status, each["runs"].hint) == ("note", "choose another folder: --runs-dir or INAT_FT_RUNS_DIR")
    ran = cli("doctor")
    assert ran.code == 1 and "device: install another build of torch" in ran.out


def test_the_memory_of_a_gpu_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(device=torch.device("cuda:0"), precision="bf16", describe=lambda: "A100")
    monkeypatch.setattr(checks, "choose_compute", lambda device, precision: gpu)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(total_memory=80 * 2**30))
    assert found()["device"].detail.startswith("A100, 80.0 GiB, ") and found()["device"].detail.endswith(", bf16")
