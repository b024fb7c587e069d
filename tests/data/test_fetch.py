import hashlib
import io
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inat_ft.data.archive import unpack
from inat_ft.data.digits import write_digits
from inat_ft.data.download import download
from inat_ft.errors import DataError, UsageError

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server:
    """A loopback server that can misbehave: `faults` are used up one a request, then it serves well."""

    def __init__(self) -> None:
        self.body, self.tag, self.ranges, self.faults, self.requests = BODY, '"v1"', True, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests.append(dict(self.headers))
                outer.answer(self, outer.faults.pop(0) if outer.faults else "")

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, fault: str) -> None:
        if fault.isdigit():
            handler.send_error(int(fault))
            return
        start = 0
        asked = handler.headers.get("Range")
        if asked and self.ranges and handler.headers.get("If-Range") in (None, self.tag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                handler.send_error(416)
                return
        handler.send_response(206 if start else 200)
        handler.send_header("ETag", self.tag)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        lie = {"too long": 1000, "too short": -1000}.get(fault, 0)
        handler.send_header("Content-Length", str(len(self.body) - start + lie))
        handler.end_headers()
        rest = self.body[start:]
        try:
            if fault == "drop":
                handler.wfile.write(rest[: len(rest) // 3])
            elif fault == "slow":
                for place in range(0, len(rest), 3000):
                    handler.wfile.write(rest[place : place + 3000])
                    time.sleep(0.05)
            else:
                handler.wfile.write(rest)
        except ConnectionError:
            pass
        handler.close_connection = True


@pytest.fixture
def server():
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def get(server: Server, to: Path, **options: object) -> Path:
    return download(server.url, to, pause_s=0.01, **options)


def test_a_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path: Path) -> None:
    ticks = []
    file = get(
        server, tmp_path / "a" / "file.bin", sha256=SHA256, size=len(BODY), tick=lambda done, total: ticks.append(done)
    )
    assert file.read_bytes() == BODY and ticks[-1] == len(BODY)
    get(server, file, sha256=SHA256)
    assert len(server.requests) == 1
    assert sorted(p.name for p in file.parent.iterdir() if not p.name.startswith(".")) == ["file.bin"]


def test_a_dropped_connection_is_taken_up_where_it_broke_off(server, tmp_path: Path) -> None:
    server.faults = ["drop", "drop", "drop"]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    assert [request.get("Range") for request in server.requests][:2] == [None, "bytes=100000-"]


def test_a_server_that_ignores_ranges_starts_over(server, tmp_path: Path) -> None:
    server.ranges, server.faults = False, ["drop", "drop"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


def test_two_versions_are_never_joined(server, tmp_path: Path) -> None:
    server.faults = ["drop", "404"]
    with pytest.raises(DataError, match="answered 404"):
        get(server, tmp_path / "f")
    server.body, server.tag = BODY[::-1], '"v2"'
    assert get(server, tmp_path / "f").read_bytes() == BODY[::-1]


def test_a_length_that_lies_is_noticed(server, tmp_path: Path) -> None:
    server.faults = ["too long"] * 20
    with pytest.raises(DataError, match="cannot fetch"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    server.faults = ["too short"]
    with pytest.raises(DataError, match="SHA-256"):
        get(server, tmp_path / "g", sha256=SHA256)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("code", ["404", "403"])
def test_a_refusal_is_final(server, tmp_path: Path, code: str) -> None:
    server.faults = [code]
    with pytest.raises(DataError, match=f"answered {code}"):
        get(server, tmp_path / "f")
    assert len(server.requests) == 1


def test_a_passing_fault_is_waited_out(server, tmp_path: Path) -> None:
    server.faults = ["500", "503"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


def test_a_lasting_fault_ends_with_what_to_do(server, tmp_path: Path) -> None:
    server.faults = ["500"] * 9
    with pytest.raises(DataError, match="answered 500") as caught:
        get(server, tmp_path / "f")
    assert "try again" in caught.value.hint and len(server.requests) == 4


def test_no_server_and_no_such_host_are_errors_soon(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/x", "http://no.such.host.invalid/x"):
        with pytest.raises(DataError, match="cannot fetch"):
            download(url, tmp_path / "f", pause_s=0.01, timeout_s=1)
    with pytest.raises(UsageError, match="no http or https address"):
        download("file:///etc/passwd", tmp_path / "f")


def test_a_wrong_hash_leaves_nothing_behind(server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="instead of 0123abcd"):
        get(server, tmp_path / "f", sha256_prefix="0123abcd")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_a_killed_download_goes_on(server, tmp_path: Path) -> None:
    server.faults = ["slow"]
    code = "import sys, pathlib; from inat_ft.data.download import download; download(sys.argv[1], pathlib.Path('f'))"
    process = subprocess.Popen([sys.executable, "-c", code, server.url])
    part = tmp_path / "f.part"
    deadline = time.monotonic() + 30
    while (not part.exists() or part.stat().st_size == 0) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "f").exists()
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            out.writestr(info, target)
    return path


def silent(done: int, total: int) -> None:
    pass


@pytest.mark.parametrize("name", ["../x", "/x", "d/../../x", "C:\\x", "d\\..\\x", "c:/x"])
def test_a_name_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    file = archive(tmp_path / "a.zip", {"d/ok": b"1", name: b"evil"})
    with pytest.raises(DataError, match="leads out of its folder"):
        unpack(file, tmp_path / "inside" / "d", "d", silent)
    assert list((tmp_path / "inside").iterdir()) == [] and not (tmp_path / "x").exists()


def test_links_bombs_and_damaged_archives_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a link or device"):
        unpack(archive(tmp_path / "l.zip", {"d/ok": b"1"}, {"d/l": "/etc"}), tmp_path / "x" / "d", "d", silent)
    bomb = archive(tmp_path / "b.zip", {"d/zeros": bytes(10_000_000)})
    with pytest.raises(DataError, match="more than 1,000,000 bytes"):
        unpack(bomb, tmp_path / "x" / "d", "d", silent, max_bytes=1_000_000)
    whole = bomb.read_bytes()
    for number, damaged in enumerate((whole[:-10], b"", whole[:20] + b"\xff" * 40 + whole[60:])):
        (tmp_path / f"{number}.zip").write_bytes(damaged)
        with pytest.raises(DataError, match="damaged"):
            unpack(tmp_path / f"{number}.zip", tmp_path / "x" / "d", "d", silent)
    with pytest.raises(DataError, match="no folder e"):
        unpack(bomb, tmp_path / "x" / "d", "e", silent)
    assert list((tmp_path / "x").iterdir()) == []


def nature(tmp_path: Path) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "JPEG")
    members = {
        f"inaturalist_12K/{part}/Aves/{n}.jpg": picture.getvalue() for part in ("train", "val") for n in range(3)
    }
    return archive(tmp_path / "source.zip", {**members, "__MACOSX/x": b""}).read_bytes()


def test_the_command_fetches_unpacks_and_does_it_once(server, cli, tmp_path: Path) -> None:
    server.body, server.faults = nature(tmp_path), ["drop"]
    ran = cli("fetch", "inat12k", "--to", "data", "--url", server.url, "--json")
    assert ran.code == 0 and ran.json == {"folder": "data/inaturalist_12K", "images": 6, "fetched": True}
    assert not Path("data/nature_12K.zip").exists()
    again = cli("fetch", "inat12k", "--to", "data", "--url", server.url, "--json")
    assert again.json["fetched"] is False and len(server.requests) == 2
    gone = cli("fetch", "inat12k", "--to", "other", "--url", "http://127.0.0.1:9/x")
    assert gone.code == 1 and "cannot fetch" in gone.err and "Traceback" not in gone.err


def test_the_digits_are_there_and_always_the_same(cli, tmp_path: Path) -> None:
    ran = cli("fetch", "digits", "--to", "data", "--json")
    assert ran.json == {"folder": "data/digits", "images": 1797, "fetched": True}
    counts = {part: len(list(Path("data/digits").glob(f"{part}/*/*.png"))) for part in ("train", "val")}
    assert counts == {"train": 1438, "val": 359}
    other = write_digits(tmp_path / "again")
    for file in sorted(Path("data/digits").rglob("*.png"))[::100]:
        assert file.read_bytes() == (other / file.relative_to("data/digits")).read_bytes()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    with pytest.raises(DataError, match="is not the digits"):
        write_digits(tmp_path / "mine")
    assert json.loads(cli("fetch", "digits", "--json").out)["fetched"] is False
