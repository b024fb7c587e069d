"""Workers on PostgreSQL: a real server, real processes, a real kill -9."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from inat_ft.errors import InatFtError
from inat_ft.sweeps.folder import create, open_sweep
from inat_ft.sweeps.parsing import parse_spec

from .test_study import SMALL

pytest.importorskip("psycopg")
INITDB = shutil.which("initdb") or next(
    (str(file) for file in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
)


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    if INITDB is None:
        pytest.skip("PostgreSQL is not installed")
    programs = Path(INITDB).resolve().parent
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/inat-ft-pg-XXXXXX"], text=True).strip())
    other = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **other}
    data = folder / "data"
    subprocess.run([INITDB, "-D", data, "-A", "trust", "-U", "sweeps", "--no-sync"], check=True, **quiet)
    directories = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    server = subprocess.Popen([programs / "postgres", "-D", data, "-p", str(port), *directories], **quiet)
    try:
        _wait_for(port)
        yield f"postgresql://sweeps@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int) -> None:
    import psycopg

    for _ in range(100):
        try:
            psycopg.connect(f"postgresql://sweeps@127.0.0.1:{port}/postgres", connect_timeout=1).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not start")


def test_many_workers_and_a_killed_one(database: str, tmp_path: Path, worker_command) -> None:
    here = create(parse_spec({**SMALL, "method": "bayes"}), tmp_path, "shared", storage=database)
    workers = [subprocess.Popen(worker_command("shared", 0.5, database), stdout=subprocess.DEVNULL) for _ in range(3)]
    log = tmp_path / "log"
    while not log.exists() or log.read_text().count("start") < 3:
        time.sleep(0.05)
    workers[0].kill()
    for worker in workers:
        worker.wait(timeout=60)

    trials = here.trials()
    assert [trial.state for trial in trials] == ["complete"] * 6
    assert len({tuple(trial.params.values()) for trial in trials}) == 6
    ends = [line for line in log.read_text().splitlines() if line.startswith("end")]
    assert len(set(ends)) == 6
    assert len(ends) <= 7, "only the trial of the killed worker may be trained twice"
    assert here.status() == ("finished", "all 6 points have been tried")


def test_another_machine_needs_only_the_address(database: str, tmp_path: Path) -> None:
    create(parse_spec(SMALL), tmp_path / "here", "known", storage=database)

    there = open_sweep("known", tmp_path / "there", database)
    assert there.spec == parse_spec(SMALL)
    assert "sweeps@127.0.0.1" in (tmp_path / "here" / "known" / "sweep.json").read_text()


def test_a_server_that_is_down_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(InatFtError, match="cannot use") as caught:
        create(parse_spec(SMALL), tmp_path, "gone", storage="postgresql://me:secret@127.0.0.1:9/none")
    assert "secret" not in caught.value.message
