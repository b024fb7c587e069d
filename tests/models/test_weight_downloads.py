"""Pretrained weights from a server, which is one of this process."""

import hashlib
import socket
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from threading import Thread

import pytest
import torch

from inat_ft.errors import WeightsError
from inat_ft.models.weights import fetch_weights, weights_file

BUFFER = BytesIO()
torch.save({"weight": torch.arange(3.0)}, BUFFER)
CONTENT = BUFFER.getvalue()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.path.endswith(".pth")
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(CONTENT if known else b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(urllib.request, "_opener", None)  # another test may have opened a URL through a proxy
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_weights_are_downloaded_once_and_verified(server: str, capsys) -> None:
    url = f"{server}/net-{SHA256[:8]}.pth"
    assert fetch_weights(url)["weight"].tolist() == [0, 1, 2]
    assert capsys.readouterr().err == ""  # no progress bar in a file
    assert weights_file(url).read_bytes() == CONTENT and socket.getdefaulttimeout() is None
    weights_file(url).write_bytes(CONTENT + b"\0")
    fetch_weights(url)  # not downloaded again
    assert weights_file(url).read_bytes() != CONTENT


@pytest.mark.parametrize(
    ("path", "reason"), [("net-00000000.pth", "invalid hash value"), ("net.zip", "HTTP Error 404: Not Found")]
)
def test_a_failed_download_says_where_the_file_is_expected_and_leaves_none(server: str, path: str, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason) as caught:
        fetch_weights(f"{server}/{path}")
    assert (
        str(weights_file(f"{server}/{path}").parent) in caught.value.message and f"{server}/{path}" in caught.value.hint
    )
    assert list(weights_file(f"{server}/{path}").parent.iterdir()) == []


def test_a_server_that_cannot_be_reached_is_reported_without_the_password() -> None:
    with pytest.raises(WeightsError, match="cannot be downloaded") as caught:
        fetch_weights("http://me:secret@127.0.0.1:1/net.pth")
    shown = f"{caught.value.message} {caught.value.hint}"
    assert "secret" not in shown and "me:***@127.0.0.1:1/net.pth" in shown
