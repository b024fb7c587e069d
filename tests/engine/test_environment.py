"""The software and hardware in the record of a run."""

import subprocess
from importlib.metadata import PackageNotFoundError

import pytest

from inat_ft.engine import environment as module
from inat_ft.engine.device import choose_compute


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "timm":
            raise PackageNotFoundError(package)
        return "1.2"

    monkeypatch.setattr(module, "version", version)
    found = module.environment(choose_compute("cpu", "fp32"))
    assert found["numpy"] == "1.2" and "timm" not in found and found["cores"] >= 1


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*words: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", refuse)
    assert module._git_commit() is None


def test_the_commit_says_whether_files_differ_from_it(tmp_path) -> None:
    assert module._git_commit() is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *words], check=True)
    clean = module._git_commit()
    (tmp_path / "file").write_text("2")
    assert len(clean) == 40 and module._git_commit() == f"{clean}-dirty"
