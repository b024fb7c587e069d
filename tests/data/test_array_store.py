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

from inat_ft.cache.array_store import clear_store, list_stores, open_store
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
from tests.data.test_array_store import HASHES, content, store
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


def test_too_large_a_cache_is_refused_before_it_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = open_store(tmp_path, "prefix", {}, (2**40,), "f4")
    with pytest.raises(DataError, match=r"the cache needs 12,288.0 GiB and .* has .* [GM]iB left"):
        huge.ensure(HASHES[:3], make, silent)
    assert not (huge.folder / "rows.bin").exists()


def test_stores_are_listed_and_cleared(tmp_path: Path) -> None:
    store(tmp_path).ensure(HASHES, make, silent)
    (found,) = list_stores(tmp_path)
    assert (found.kind, found.rows, found.key) == ("packed", 40, {"size": 3})
    clear_store(found)
    assert list_stores(tmp_path) == [] and len(store(tmp_path).missing(HASHES)) == 40


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
from tests.data.test_array_store import HASHES, content, store
def stuck(missing):
    yield content(missing[:1])
    print("holding", flush=True)
    time.sleep(60)
store(Path({str(tmp_path)!r})).ensure(HASHES, stuck, lambda done, total: None)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "holding\n"
        process.kill()
    assert store(tmp_path).ensure(HASHES, make, silent) == 39
