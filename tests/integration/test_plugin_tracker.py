"""The example tracker, installed as a package, logs a training; one that fails does not stop it."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from inat_ft.testing import check_tracker
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.slow

TRAIN = ["--backbone", "cnn", "--set", "model.filters=16", "--image-size", 32, "--epochs", 2, "--patience", 0]


@pytest.fixture(scope="module")
def python(plugin_environment) -> Path:
    return plugin_environment("tracker")


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.server.posts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(self.server.answer)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.posts, server.answer, server.url = [], 200, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def run(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "inat_ft", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_example_keeps_the_contract(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugins" / "tracker"))
    from webhook import Webhook

    check_tracker(Webhook(url=server.url), tmp_path)
    assert [post.get("epoch") for post in server.posts] == [1, 2, None, 1, None, 2, None]
    sys.modules.pop("webhook")


def test_a_tracker_plugin_logs_every_epoch(python: Path, server, manifest_file: Path) -> None:
    option = f"track.webhook.url={server.url}"
    ran = run(python, "train", "--split", manifest_file, *TRAIN, "--tracker", "webhook", "--set", option, "--json")
    assert ran.returncode == 0, ran.stderr
    assert [post.get("epoch") for post in server.posts] == [1, 2, None] and server.posts[-1]["finished"]
    assert server.posts[-1]["val_accuracy"] == json.loads(ran.stdout)["val_accuracy"]
    assert f"results were posted to {server.url}" in ran.stderr


def test_a_tracker_that_fails_is_reported_once_and_the_run_is_complete(python, server, manifest_file) -> None:
    server.answer = 500
    ran = run(python, "train", "--split", manifest_file, *TRAIN, "--set", f"track.webhook={{url: '{server.url}'}}")
    assert ran.returncode == 0 and len(list(Path("runs").glob("*/record.json"))) == 1
    assert ran.stderr.count("warning") == 1
    assert "tracker 'webhook' of package 'inat-ft-webhook' failed in log(): HTTPError" in ran.stderr


def test_options_of_a_tracker_are_checked_before_training(python: Path, manifest_file: Path) -> None:
    for setting, message in (
        ("track.webhook.ulr=x", "unknown key 'ulr' in track.webhook: did you mean 'url'?"),
        ("track.webhook={}", "track.webhook.url: required, but missing"),
        ("track.webhok.url=x", "unknown tracker 'webhok': did you mean 'webhook'?"),
        ("track.webhok=x", "unknown key 'webhok' in track: did you mean 'webhook'?"),
    ):
        ran = run(python, "train", "--split", manifest_file, *TRAIN, "--set", setting)
        assert ran.returncode == 2 and message in ran.stderr, ran.stderr
    shown = run(python, "train", "--show-config", "--json", "--set", "track.webhook.url=http://localhost/x")
    keys = {each["key"]: each["value"] for each in json.loads(shown.stdout)}
    assert keys["track.webhook.url"] == "http://localhost/x" and keys["track.wandb"] == "off"
    assert not Path("runs").exists()
