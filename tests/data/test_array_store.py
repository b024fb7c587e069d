import errno
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from inat_ft_doctor.stores import clear_store, list_stores

from inat_ft.cache import array_store
from inat_ft.cache.array_store import open_store
from inat_ft.errors import DataError

HASHES = [f"{number:064x}" for number in range(40)]


def content(places) -> np.ndarray:
    return np.array([[place, place + 1, place % 7] for place in places], np.uint8)


def make(missing):
    for start in range(0, len(missing), 3):
        yield content(missing[start : start + 3])


def store(folder: Path, **key: object):
    return open_store(folder, "packed", {"size": 3, **key}, (3,), "u1")


def silent(done: int, total: int) -> None:
    pass


def rows(folder: Path, hashes) -> np.ndarray:
    mapped, positions = store(folder).read(hashes)
    return mapped[positions]


def test_rows_are_made_once_and_found_again(tmp_path: Path) -> None:
    seen = []
    assert store(tmp_path).ensure(HASHES[:10], make, lambda done, total: seen.append((done, total))) == 10
    assert seen[-1] == (10, 10)
    assert store(tmp_path).ensure(HASHES[5:10], make, silent) == 0
    assert (rows(tmp_path, HASHES[3:7]) == content(range(3, 7))).all()


def test_equal_images_share_a_row(tmp_path: Path) -> None:
    assert store(tmp_path).ensure([HASHES[0], HASHES[1], HASHES[0]], make, silent) == 2
    assert (rows(tmp_path, [HASHES[0], HASHES[0]]) == content([0, 0])).all()


def test_another_key_is_another_store(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:2], make, silent)
    assert store(tmp_path, version=2).missing(HASHES[:2]) == [0, 1]


@pytest.mark.parametrize("where", ["rows.bin", "index.bin"])
def test_what_a_killed_writer_left_half_done_does_not_count(tmp_path: Path, where: str) -> None:
    store(tmp_path).ensure(HASHES[:5], make, silent)
    with (store(tmp_path).folder / where).open("ab") as file:
        file.write(b"\xff\xff")
    store(tmp_path).ensure(HASHES[:9], lambda missing: iter([content([place]) for place in missing]), silent)
    assert (rows(tmp_path, HASHES[:9]) == content(range(9))).all()


def test_a_killed_process_is_resumed_and_nothing_is_wrong(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from inat_ft.cache import array_store
from tests.data.test_array_store import HASHES, content, store
array_store._FLUSH_SECONDS = 0
def slow(missing):
    for place in missing:
        time.sleep(0.02)
        yield content([place])
store(Path({str(tmp_path)!r})).ensure(HASHES, slow, lambda done, total: print(done, flush=True))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) >= 7:
                process.send_signal(signal.SIGKILL)
                break
    left = store(tmp_path).missing(HASHES)
    assert 0 < len(left) <= 33
    store(tmp_path).ensure(HASHES, make, silent)
    assert (rows(tmp_path, HASHES) == content(range(40))).all()


def test_two_processes_share_the_work_and_every_row_is_right(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.data.test_array_store import HASHES, make, silent, store
print(store(Path({str(tmp_path)!r})).ensure(HASHES, make, silent))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = [int(process.communicate()[0]) for process in processes]
    assert sum(made) == len(HASHES) and (rows(tmp_path, HASHES) == content(range(40))).all()
    assert (store(tmp_path).folder / "rows.bin").stat().st_size == 3 * len(HASHES)


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:5], make, silent)
    process = os.fork()
    if process == 0:  # a limit on file size stands for a full disk; it cannot be taken back in the same process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24, 24))
        try:
            store(tmp_path).ensure(HASHES, make, silent)
        except Exception as error:
            named = isinstance(error, DataError) or "cannot write" in str(error)
            os._exit(0 if named and "free some space" in error.hint else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert (rows(tmp_path, HASHES[:5]) == content(range(5))).all()
    store(tmp_path).ensure(HASHES, make, silent)
    assert (rows(tmp_path, HASHES) == content(range(40))).all()


def test_too_large_a_cache_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    huge = open_store(tmp_path, "prefix", {}, (2**40,), "f4")
    with pytest.raises(DataError, match=r"the cache needs 12,288.0 GiB and .* has .* [GM]iB left"):
        huge.ensure(HASHES[:3], make, silent)
    assert not (huge.folder / "rows.bin").exists()


def test_stores_are_listed_and_cleared(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES, make, silent)
    (found,) = list_stores(tmp_path)
    assert (found.kind, found.rows, found.key) == ("packed", 40, {"size": 3})
    other = tmp_path / "projects" / "server" / "key.json"  # of another program, if the folder is not that of the caches
    other.parent.mkdir(parents=True)
    other.write_text('{"key": {}}')
    assert list_stores(tmp_path) == [found]
    clear_store(found)
    assert list_stores(tmp_path) == [] and len(store(tmp_path).missing(HASHES)) == 40


def test_the_largest_store_is_listed_first_and_a_cleared_one_can_be_cleared(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:2], make, silent)
    store(tmp_path, version=2).ensure(HASHES[:9], make, silent)
    larger, smaller = list_stores(tmp_path)
    assert (larger.rows, smaller.rows) == (9, 2) and larger.size > smaller.size
    (smaller.folder / "index.bin").unlink()
    assert [found.rows for found in list_stores(tmp_path)] == [9, 0]
    clear_store(smaller)
    clear_store(smaller)
    assert [found.rows for found in list_stores(tmp_path)] == [9]


def test_a_writer_waits_for_the_lock_and_closes_its_files(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:1], make, silent)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with ThreadPoolExecutor(1) as pool:
        with FileLock(store(tmp_path).folder / "lock"):
            building = pool.submit(store(tmp_path).ensure, HASHES[:9], make, silent)
            time.sleep(0.2)
            assert not building.done() and len(store(tmp_path).missing(HASHES[:9])) == 8
        assert building.result() == 8
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_digests_without_rows_do_not_return_when_rows_are_added(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:2], make, silent)
    index = store(tmp_path).folder / "index.bin"
    with index.open("ab") as file:
        file.write(b"".join(bytes.fromhex(name) for name in HASHES[20:30]))
    assert store(tmp_path).missing(HASHES[20:30]) == list(range(10))
    store(tmp_path).ensure(HASHES[:4], lambda missing: iter([content(missing)]), silent)
    assert index.stat().st_size == 4 * 32 and store(tmp_path).missing(HASHES[20:30]) == list(range(10))


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "the disk is full"), (errno.EIO, "cannot write the cache to .*Input/output error")],
)
@pytest.mark.parametrize("failing", [1, 3])
def test_no_row_after_a_failed_write_is_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str, failing: int
) -> None:
    write, blocks = array_store._write, []

    def fail_once(handle: int, data: memoryview) -> None:
        if len(data) % 32:  # rows, not digests
            blocks.append(len(data))
            if len(blocks) == failing + 1:
                raise OSError(number, os.strerror(number))
        write(handle, data)

    monkeypatch.setattr(array_store, "_write", fail_once)
    with pytest.raises(DataError, match=says):
        store(tmp_path).ensure(HASHES[:12], make, silent)
    assert len(blocks) == failing + 1
    assert len(store(tmp_path).missing(HASHES[:12])) == 12 - 3 * failing
    assert (rows(tmp_path, HASHES[: 3 * failing]) == content(range(3 * failing))).all()
    store(tmp_path).ensure(HASHES[:12], lambda missing: iter([content(missing)]), silent)
    assert (rows(tmp_path, HASHES[:12]) == content(range(12))).all()


@pytest.mark.parametrize(
    ("flush_bytes", "flush_seconds", "flushes"), [(9, 1e9, 4), (10, 1e9, 2), (1000, 1e9, 1), (1000, 0.0, 4)]
)
def test_rows_become_valid_after_so_many_bytes_or_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flush_bytes: int, flush_seconds: float, flushes: int
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(array_store, "_FLUSH_BYTES", flush_bytes)
    monkeypatch.setattr(array_store, "_FLUSH_SECONDS", flush_seconds)
    store(tmp_path).ensure(HASHES[:9], make, silent)  # three blocks of nine bytes, and a last flush
    assert len(synced) == 1 + 2 * flushes  # key.json; rows and index


def test_progress_ends_with_the_total_while_rows_are_still_being_written(tmp_path: Path, monkeypatch) -> None:
    write, seen = array_store._write, []
    monkeypatch.setattr(array_store, "_write", lambda handle, data: (time.sleep(0.05), write(handle, data)))
    store(tmp_path).ensure(HASHES[:3], make, lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (3, 3)]


def test_rows_that_take_the_place_of_cleared_ones_are_not_read_by_the_old_index(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:3], make, silent)
    real, backwards = np.memmap, HASHES[2::-1]

    def late(*words, **options):  # another process clears and fills the store meanwhile
        clear_store(list_stores(tmp_path)[0])
        store(tmp_path).ensure(backwards, lambda missing: iter([content([2, 1, 0])]), silent)
        return real(*words, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="was cleared while it was being read"):
        patch.setattr(np, "memmap", late)
        store(tmp_path).read(HASHES[:3])
    assert (rows(tmp_path, HASHES[:3]) == content(range(3))).all()


def test_a_builder_that_waits_while_the_store_is_cleared_fills_it(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES[:3], make, silent)
    with ThreadPoolExecutor(2) as pool, FileLock(store(tmp_path).folder / "lock"):
        clearing = pool.submit(clear_store, list_stores(tmp_path)[0])
        building = pool.submit(store(tmp_path).ensure, HASHES[:9], make, silent)
        time.sleep(0.2)
    assert clearing.result() is None and building.result() in (6, 9)
    assert store(tmp_path).ensure(HASHES[:9], make, silent) in (0, 9)  # cleared last, or filled last
    assert (rows(tmp_path, HASHES[:9]) == content(range(9))).all()


def test_a_waiting_process_goes_on_when_the_writer_is_killed(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from inat_ft.cache import array_store
from tests.data.test_array_store import HASHES, content, store
array_store._FLUSH_SECONDS = 0
def stuck(missing):
    yield content(missing[:1])
    while store(Path({str(tmp_path)!r})).missing(HASHES[:1]):
        time.sleep(0.01)
    print("holding", flush=True)
    time.sleep(60)
store(Path({str(tmp_path)!r})).ensure(HASHES, stuck, lambda done, total: None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holding\n"
        process.kill()
    assert store(tmp_path).ensure(HASHES, make, silent) == 39


def test_a_hash_without_a_row_and_a_missing_store_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="was cleared while it was being read"):
        store(tmp_path).read(HASHES[:1])
    store(tmp_path).ensure(HASHES[:3], make, silent)
    with pytest.raises(DataError, match="was cleared while it was being read") as caught:
        store(tmp_path).read(HASHES[2:4])
    assert caught.value.hint == "run the same command again"


def test_rows_that_another_process_adds_before_the_lock_is_free_are_not_made_again(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        store(tmp_path).ensure(HASHES[:1], make, silent)
        with store(tmp_path).appending() as writer:
            building = pool.submit(store(tmp_path).ensure, HASHES[:3], lambda missing: 1 / 0, silent)
            time.sleep(0.2)
            writer.digests += [bytes.fromhex(name) for name in HASHES[1:3]]
            for block in make([1, 2]):
                writer.write(block)
            writer.flush()
        assert building.result() == 0
    assert store(tmp_path).missing(HASHES[:3]) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"key": 3}', "\xff"])
def test_a_store_with_a_damaged_description_is_listed_and_cleared(tmp_path: Path, text: str) -> None:
    store(tmp_path).ensure(HASHES[:3], make, silent)
    (store(tmp_path).folder / "key.json").write_text(text, encoding="latin-1")
    (found,) = list_stores(tmp_path)
    assert (found.rows, found.key) == (3, {})
    clear_store(found)
    assert list_stores(tmp_path) == []
