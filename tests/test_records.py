import os
from pathlib import Path

import pytest

from inat_ft.errors import InatFtError
from inat_ft.records import atomic_write, write_text


def test_an_existing_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path) -> None:
    for mode in (0o600, 0o640, 0o664):
        file = tmp_path / f"{mode:o}"
        file.write_text("old")
        file.chmod(mode)
        write_text(file, "new")
        assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", mode)
    write_text(tmp_path / "new", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_link_keeps_leading_to_its_target(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    target, link, dangling = tmp_path / "shared" / "file", tmp_path / "link", tmp_path / "dangling"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(Path("shared") / "file")
    dangling.symlink_to(tmp_path / "shared" / "later")
    write_text(link, "new")
    write_text(dangling, "first")
    assert link.is_symlink() and dangling.is_symlink()
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o600)
    assert (tmp_path / "shared" / "later").read_text() == "first"
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["file", "later"]


def test_what_is_written_is_synced_through_a_handle_that_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.write(handle, b"")))  # fails on a read-only handle
    write_text(tmp_path / "file", "x")
    assert synced == [0]


@pytest.mark.parametrize("code", [28, 122, 27])
def test_the_code_of_a_library_s_error_decides_and_not_its_words(tmp_path: Path, code: int) -> None:
    with pytest.raises(InatFtError) as caught, atomic_write(tmp_path / "model"):
        raise RuntimeError(f"I/O error while writing: another wording (os error {code})")
    assert os.strerror(code) in caught.value.message and "free some space" in caught.value.hint
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "model"):
        raise RuntimeError("this is not about No space left on device")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [("eval", "birsd"), ("predict", "birds", "."), ("compare", "runs/brids", "x")])
def test_a_run_that_is_not_found_is_suggested(invoke, words: tuple[str, ...]) -> None:
    Path("runs/birds").mkdir(parents=True)
    Path("runs/other").mkdir()
    Path("a.jpg").touch()
    ran = invoke(*words)
    assert ran.code == 2 and "not found: " in ran.err and "did you mean 'runs/birds'?" in ran.err
    assert "did you mean" not in invoke("eval", "runs/mice").err
