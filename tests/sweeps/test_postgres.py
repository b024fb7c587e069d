"""Workers on PostgreSQL: a real server, real processes, a real kill -9."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import optuna
import pytest
from inat_ft_sweeps import storage
from inat_ft_sweeps.folder import create, open_sweep
from inat_ft_sweeps.parsing import parse_spec
from inat_ft_sweeps.worker import run_worker

from inat_ft.errors import InatFtError, StorageError

from .test_study import SMALL

pytest.importorskip("psycopg")
INITDB = shutil.which("initdb") or next(
    (str(file) for file in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)), None
)


class Server:
    """A PostgreSQL server of its own, which can be restarted."""

    def __init__(self, folder: Path, port: int, owner: dict[str, object]) -> None:
        self.folder, self.port, self.owner = folder, port, owner
        self.programs = Path(INITDB).resolve().parent
        self.quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder, **owner}
        command = [INITDB, "-D", folder / "data", "-A", "trust", "-U", "sweeps", "--no-sync"]
        subprocess.run(command, check=True, **self.quiet)

    @property
    def url(self) -> str:
        return f"postgresql://sweeps@127.0.0.1:{self.port}/postgres"

    def start(self, *settings: str) -> None:
        options = ["listen_addresses=127.0.0.1", f"unix_socket_directories={self.folder}", "fsync=off", *settings]
        words = [word for option in options for word in ("-c", option)]
        command = [self.programs / "postgres", "-D", self.folder / "data", "-p", str(self.port), *words]
        self.process = subprocess.Popen(command, **self.quiet)
        _wait_for(self.port)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    if INITDB is None:
        pytest.skip("PostgreSQL is not installed")
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/inat-ft-pg-XXXXXX"], text=True).strip())
    owner = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        owner = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made = Server(folder, port, owner)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def database(server: Server) -> str:
    return server.url


def _wait_for(port: int) -> None:
    import psycopg

    for _ in range(100):
        try:
            psycopg.connect(f"postgresql://sweeps@127.0.0.1:{port}/postgres", connect_timeout=1).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise TimeoutError("PostgreSQL does not start")


@pytest.mark.slow
def test_many_workers_and_a_killed_one(database: str, tmp_path: Path, worker_command) -> None:
    here = create(parse_spec({**SMALL, "method": "bayes"}), tmp_path, "shared", storage=database)
    workers = [subprocess.Popen(worker_command("shared", 0.5, database), stdout=subprocess.DEVNULL) for _ in range(3)]
    log = tmp_path / "log"
    while not log.exists() or log.read_text().count("start") < 3:
        time.sleep(0.05)
    workers[0].kill()
    for worker in workers:
        worker.wait(timeout=900)

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


@pytest.mark.slow
def test_a_restart_and_idle_timeouts_cost_no_running_trial(server: Server, tmp_path: Path, worker_command) -> None:
    spec = {"method": "grid", "parameters": {"epochs": {"values": [1, 2]}, "dropout": {"value": 0.0}}}
    here = create(parse_spec(spec), tmp_path, "restarted", storage=server.url)
    seconds = (12, 1)  # the second worker ends first, and meets a running trial whose lock must be held again
    workers = []
    for each in seconds:
        workers.append(subprocess.Popen(worker_command("restarted", each, server.url), stdout=subprocess.PIPE))
        while len([line for line in _log(tmp_path) if line.startswith("start")]) < len(workers):
            time.sleep(0.05)
    server.stop()
    server.start("idle_session_timeout=3s")
    try:
        out = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        server.stop()
        server.start()

    assert all(b"all 2 points have been tried" in each for each in out)
    assert [(trial.state, trial.attempts) for trial in here.trials()] == [("complete", 1)] * 2
    assert len([line for line in _log(tmp_path) if line.startswith("start")]) == 2, "no trial is trained twice"


def _log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


def test_a_trial_taken_for_dead_still_records_its_value(database: str, tmp_path: Path) -> None:
    sweep = create(parse_spec(SMALL), tmp_path, "buried", storage=database)
    claimed = sweep.claim()
    sweep.study.tell(claimed.trial.number, state=optuna.trial.TrialState.FAIL)  # as another worker does

    sweep.finish(claimed, 0.75)

    (trial,) = sweep.trials()
    assert (trial.state, trial.value, trial.run) == ("complete", 0.75, claimed.run)


@pytest.mark.slow
def test_a_server_that_stays_down_ends_a_trial_in_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.url.replace("sweeps@", "sweeps:hunter2@")
    sweep = create(parse_spec(SMALL), tmp_path, "down", storage=url)
    claimed = sweep.claim()
    monkeypatch.setattr(storage, "PATIENCE_S", 0.5)
    server.stop()
    try:
        with pytest.raises(StorageError) as caught:
            sweep.finish(claimed, 0.75)
        with pytest.raises(StorageError):
            open_sweep("down", tmp_path, url)
    finally:
        server.start()

    text = f"{caught.value.message}\n{caught.value.hint}"
    assert (
        "cannot record the result of trial 0, val_accuracy 0.7500: lost the connection to postgresql://sweeps@" in text
    )
    assert str(sweep.runs / claimed.run) in text and "inat-ft sweep run down" in text
    assert "hunter2" not in text and "sqlalchemy" not in text.lower() and "\n" not in caught.value.message
    assert run_worker(open_sweep("down", tmp_path, url), lambda job: 0.5, 1, lambda line: None).state == "waiting"
    assert sweep.trials()[0].value == 0.5, "the trial is free again"


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("postgresql://me:hunter2@127.0.0.1:12x/db", "not a valid address"),
        ("postgresql://me:hunter2@127.0.0.1:{port}/db", "cannot use postgresql://me@127.0.0.1"),
        ("postgresql://me@127.0.0.1:{port}/db?password=hunter2", "cannot use postgresql://me@127.0.0.1"),
    ],
)
def test_a_wrong_port_is_one_sentence_without_the_password(tmp_path: Path, address: str, named: str) -> None:
    with socket.socket() as other:  # something that is not PostgreSQL
        other.bind(("127.0.0.1", 0))
        other.listen()
        answer = threading.Thread(target=_answer_http, args=(other,), daemon=True)
        answer.start()
        with pytest.raises(InatFtError) as caught:
            create(parse_spec(SMALL), tmp_path, "wrong", storage=address.format(port=other.getsockname()[1]))
    text = f"{caught.value.message}\n{caught.value.hint}"
    assert named in text and "hunter2" not in text
    assert "\n" not in caught.value.message
    assert not (tmp_path / "wrong").exists()


def _answer_http(listener: socket.socket) -> None:
    try:
        while True:
            client, _ = listener.accept()
            client.recv(100)
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            client.close()
    except OSError:
        return
