import io
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_datasets import unzip as archive
from inat_ft_datasets.unzip import ArchiveError, unpack

from inat_ft.errors import DataError

Members = list[tuple[str, bytes]]
GOOD: Members = [("d/train/Aves/1.jpg", b"one"), ("d/val/Aves/2.jpg", b"two"), ("d/empty/", b""), ("__MACOSX/d/x", b"")]


def silent(done: int, total: int) -> None:
    pass


def zipped(members: Members, kind: int = 0, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file; `kind` is the file type of its last member."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as out:
        for number, (name, content) in enumerate(members, 1):
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            if kind and number == len(members):
                info.external_attr = (kind | 0o777) << 16
            out.writestr(info, content)
    return made.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The target of unpacking, alone in a folder."""
    (tmp_path / "inside").mkdir()
    return tmp_path / "inside" / "d"


def refused(content: bytes, place: Path, match: str, **options: object) -> None:
    """Unpacking fails and leaves no files."""
    file = place.parent.parent / "a.zip"
    file.write_bytes(content)
    before = sorted(place.parent.parent.iterdir())
    with pytest.raises(ArchiveError, match=match):
        unpack(file, place, "d", silent, **options)
    assert list(place.parent.iterdir()) == [] and sorted(place.parent.parent.iterdir()) == before


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_valid_archive_is_unpacked(tmp_path: Path, place: Path, method: int) -> None:
    reports: list[tuple[int, int]] = []
    (tmp_path / "a.zip").write_bytes(zipped(GOOD, method=method))
    unpack(tmp_path / "a.zip", place, "d", lambda *counts: reports.append(counts))
    assert {file.relative_to(place).as_posix() for file in place.rglob("*")} == {
        *("train", "train/Aves", "train/Aves/1.jpg", "val", "val/Aves", "val/Aves/2.jpg", "empty"),
    }
    assert (place / "val/Aves/2.jpg").read_bytes() == b"two"
    assert reports == [(1, 3), (2, 3), (3, 3)] and list(place.parent.iterdir()) == [place]


def test_existing_files_are_kept_and_unfinished_folders_are_removed(tmp_path: Path, place: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(GOOD))
    place.mkdir()
    left_by_a_kill = place.with_name(".d.unfinished")
    left_by_a_kill.mkdir()
    (left_by_a_kill / "stale").touch()
    unpack(tmp_path / "a.zip", place, "d", silent)  # an empty folder is as good as none
    assert not (place / "stale").exists() and not left_by_a_kill.exists()
    with pytest.raises(DataError, match="already exists"):
        unpack(tmp_path / "a.zip", place, "d", silent)


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "d/../../x", "d/..", "C:\\x", "c:/x", "d\\..\\x", "\\\\host\\share\\x", "d/x:stream", ".", "//x"],
)
def test_a_name_outside_the_archive_is_refused(place: Path, name: str) -> None:
    refused(zipped([*GOOD, (name, b"evil")]), place, "a name outside its folder")


def test_an_invalid_name_is_refused(place: Path) -> None:
    refused(zipped([*GOOD, ("d/aXXb", b"cut")]).replace(b"d/aXXb", b"d/a\0\0b"), place, "an invalid name")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_are_refused(place: Path, kind: int) -> None:
    refused(zipped([*GOOD, ("d/l", b"/etc/passwd")], kind=kind), place, "a link or device")


def test_a_duplicate_name_is_refused(place: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped([*GOOD, GOOD[0]])
    refused(twice, place, "a name twice: train/Aves/1.jpg")
    refused(zipped([("d/a", b"1"), ("d/a/b", b"2")]), place, "a name twice")
    refused(zipped([("d/a/b", b"2"), ("d/a", b"1")]), place, "a name twice")


def test_excessive_folder_depth_is_refused(place: Path) -> None:
    refused(zipped([("d/" * 2000 + "x", b"1")]), place, "more than 32 deep")


def test_zip_bombs_are_refused_by_their_unpacked_size(place: Path) -> None:
    bomb = zipped([("d/zeros", bytes(20_000_000))])
    assert len(bomb) < 30_000
    refused(bomb, place, "more than 16,777,216 bytes")
    refused(
        zipped([("d/a", bytes(600_000)), ("d/b", bytes(600_000))]), place, "more than 1,000,000", max_bytes=1_000_000
    )


def test_wrong_sizes_in_headers_are_detected(tmp_path: Path, place: Path) -> None:
    bomb = zipped([("d/zeros", bytes(20_000_000))])
    refused(bomb.replace(struct.pack("<L", 20_000_000), struct.pack("<L", 1000)), place, "damaged")
    (tmp_path / "a.zip").write_bytes(bomb)
    with zipfile.ZipFile(tmp_path / "a.zip") as opened, pytest.raises(ArchiveError, match="more than 3,000,000"):
        archive._write(opened, opened.infolist()[0], tmp_path / "zeros", 500_000, 3_000_000)
    assert (tmp_path / "zeros").stat().st_size <= 3_000_000


def test_too_many_files_are_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    refused(zipped(GOOD), place, "contains 4 files, more than 3")


def test_other_compression_methods_and_encryption_are_refused(place: Path) -> None:
    refused(zipped(GOOD, method=zipfile.ZIP_LZMA), place, "not packed by deflate")
    encrypted = bytearray(zipped([("d/x", b"1")], method=zipfile.ZIP_STORED))
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(mark) + flags] |= 1
    refused(bytes(encrypted), place, "encrypted")


def test_an_archive_without_the_expected_folder_is_refused(place: Path) -> None:
    refused(zipped([("e/x", b"1")]), place, "does not contain a folder d")
    refused(zipped([("d", b"a file")]), place, "does not contain a folder d")
    refused(zipped([]), place, "does not contain a folder d")
    for no_archive in (b"", b"<!DOCTYPE html>", b"\x1f\x8b" + bytes(100)):
        refused(no_archive, place, "is damaged: File is not a zip file")

    def complain(folder: Path) -> None:
        assert (folder / "train/Aves/1.jpg").is_file() and not place.exists()
        raise ArchiveError("not what was wanted")

    refused(zipped(GOOD), place, "not what was wanted", check=complain)


NOISE = zipped(
    [(f"d/{name}", np.random.default_rng(3).choice(list(b"acgt"), 500).astype("u1").tobytes()) for name in "abc"]
)


def test_a_damaged_stream_is_refused(place: Path) -> None:
    refused(NOISE[:60] + b"\xff" * 40 + NOISE[100:], place, "is damaged: Error -3")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(NOISE) - 1), st.integers(0, 255)), max_size=4), st.integers(0, len(NOISE)))
def test_a_damaged_archive_is_unpacked_completely_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], stop: int
) -> None:
    content = bytearray(NOISE)
    for where, byte in changes:
        content[where] = byte
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "a.zip").write_bytes(content[:stop] if stop % 2 else content)
    try:
        unpack(folder / "a.zip", folder / "in" / "d", "d", silent)
    except DataError:
        assert not (folder / "in" / "d").exists() and list((folder / "in").iterdir()) == []
    else:
        assert all(len(file.read_bytes()) == 500 for file in (folder / "in" / "d").rglob("*") if file.is_file())


def test_a_full_disk_is_reported_and_nothing_remains(tmp_path: Path, place: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped([("d/small", b"1"), ("d/big", np.random.default_rng(0).bytes(300_000))]))
    code = "import sys, pathlib; from inat_ft_datasets.unzip import unpack\n"
    code += "unpack(pathlib.Path('a.zip'), pathlib.Path('inside/d'), 'd', lambda done, total: None)"
    ran = subprocess.run(
        [sys.executable, "-B", "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1 and "cannot unpack a.zip to inside: File too large" in ran.stderr
    assert list(place.parent.iterdir()) == []
