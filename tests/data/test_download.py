import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inat_ft_datasets.http import download

from inat_ft.errors import DataError, UsageError
from tests.data.serving import Server, serving

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
IN_A_PROCESS = (
    "import sys, pathlib; from inat_ft_datasets.http import download; download(sys.argv[1], pathlib.Path('f'))"
)


@pytest.fixture
def server():
    with serving(BODY) as made:
        yield made


def get(server: Server, to: Path, **options: object) -> Path:
    return download(server.url, to, **{"pause_s": 0.001, **options})


def left(folder: Path) -> list[str]:
    """The names in a folder, without lock files."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_complete_file_is_not_downloaded_again(server, tmp_path: Path) -> None:
    reports: list[tuple[int, int]] = []
    file = get(
        server, tmp_path / "a" / "b" / "f", sha256=SHA256.upper(), progress=lambda *counts: reports.append(counts)
    )
    assert file.read_bytes() == BODY and left(file.parent) == ["f"]
    assert reports == sorted(reports) and reports[-1] == (len(BODY), len(BODY))
    for known in ({}, {"sha256": SHA256}, {"sha256": SHA256[:8]}, {"size": len(BODY)}):
        get(server, file, **known)
    assert len(server.requests) == 1


def test_a_file_of_the_wrong_size_is_replaced(server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(BODY[:-1])
    assert get(server, tmp_path / "f", size=len(BODY)).read_bytes() == BODY


def test_a_dropped_connection_is_resumed(server, tmp_path: Path) -> None:
    server.faults = ["drop"] * 6
    assert get(server, tmp_path / "f").read_bytes() == BODY
    assert server.asked[:3] == [None, "bytes=100000-", "bytes=166666-"] and len(server.requests) == 7
    assert {request["If-Range"] for request in server.requests[1:]} == {'"v0"'}


@pytest.mark.parametrize(
    ("tag", "modified", "condition"),
    [
        ("", "Mon, 02 Jan 2023 03:04:05 GMT", "Mon, 02 Jan 2023 03:04:05 GMT"),
        ('W/"weak"', "", None),
        ("", "", None),
    ],
)
def test_a_download_is_resumed_without_a_strong_etag(
    server, tmp_path: Path, tag: str, modified: str, condition: str
) -> None:
    server.tag, server.modified, server.faults = tag, modified, ["drop"]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-"] and server.requests[1].get("If-Range") == condition


def test_a_server_that_ignores_ranges_causes_a_restart(server, tmp_path: Path) -> None:
    server.ranges, server.faults = False, ["drop", "drop"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


def test_a_short_range_is_followed_by_another_request(server, tmp_path: Path) -> None:
    server.faults = ["drop", "capped", "capped"]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    assert server.asked == [None, "bytes=100000-", "bytes=150000-", "bytes=200000-"]


def test_a_range_that_was_not_requested_is_discarded(server, tmp_path: Path) -> None:
    server.faults = ["drop", "shifted"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("if_range", [True, False])
def test_two_versions_are_never_joined(server, tmp_path: Path, if_range: bool) -> None:
    server.if_range, server.faults = if_range, ["drop", "404"]
    with pytest.raises(DataError, match="answered 404"):
        get(server, tmp_path / "f")
    assert left(tmp_path) == ["f.part", "f.part.json"]
    server.body, server.tag = BODY[::-1], '"v2"'
    assert get(server, tmp_path / "f").read_bytes() == BODY[::-1] and left(tmp_path) == ["f"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["drop", "other", "short", "long", "shifted", "capped", "503", "416", ""]), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_after_any_faults_the_file_is_one_version_or_missing(faults: list[str], ranges: bool, if_range: bool) -> None:
    body = BODY[:9_000]
    with serving(body) as server, tempfile.TemporaryDirectory() as folder:
        server.faults, server.ranges, server.if_range = faults, ranges, if_range
        file = Path(folder) / "f"
        for _ in range(3):
            try:
                got = get(server, file).read_bytes()
            except DataError:
                assert not file.exists()
            else:
                assert got in (body, bytes(255 - byte for byte in body)) and left(file.parent) == ["f"]
        assert file.exists()


def test_a_content_length_that_is_too_long_is_detected(server, tmp_path: Path) -> None:
    server.faults = ["long"] * 20
    with pytest.raises(DataError, match="cannot fetch"):
        get(server, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    server.faults = ["long"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


def test_a_content_length_that_is_too_short_is_detected(server, tmp_path: Path) -> None:
    server.faults = ["short"] * 20
    with pytest.raises(DataError, match="more than the 299,000 bytes it announced"):
        get(server, tmp_path / "f")
    with pytest.raises(DataError, match="SHA-256 begins with"):
        get(server, tmp_path / "f", sha256=SHA256)
    with pytest.raises(DataError, match="has 299,000 bytes instead of 300,000"):
        get(server, tmp_path / "f", size=len(BODY))
    assert not (tmp_path / "f").exists()
    server.faults = ["short"]
    assert get(server, tmp_path / "f").read_bytes() == BODY


@pytest.mark.parametrize("fault", ["garbage", "digits"])
def test_an_invalid_content_length_is_ignored(server, tmp_path: Path, fault: str) -> None:
    server.faults = [fault]
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_client_errors_are_not_retried(server, tmp_path: Path, code: int) -> None:
    server.faults = [str(code)]
    with pytest.raises(DataError, match=f"answered {code}") as caught:
        get(server, tmp_path / "f")
    assert len(server.requests) == 1 and "check the address" in caught.value.hint and left(tmp_path) == []


def test_server_errors_are_retried_a_limited_number_of_times(server, tmp_path: Path) -> None:
    server.faults = ["500", "503", "429"]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    server.faults = ["500"] * 9
    with pytest.raises(DataError, match="answered 500") as caught:
        get(server, tmp_path / "g")
    assert "try again" in caught.value.hint and len(server.requests) == 8


def test_a_timeout_is_an_error_and_the_part_is_kept(server, tmp_path: Path) -> None:
    server.faults = ["stall"] * 9
    server.ranges = False
    with pytest.raises(DataError, match="timed out") as caught:
        get(server, tmp_path / "f", timeout_s=0.1)
    assert "the received part is kept" in caught.value.hint and (tmp_path / "f.part").read_bytes() == BODY[:100_000]


def test_no_server_and_no_such_host_are_errors(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9/x", "http://no.such.host.invalid/x"):
        with pytest.raises(DataError, match=r"cannot fetch .* no connection") as caught:
            download(url, tmp_path / "f", pause_s=0.001, timeout_s=1)
        assert "check the network" in caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://host/x",
        "host/x",
        "",
        "http://",
        "http:///x",
        "http://h:port/x",
        "http://h/a b",
        "http://h/ä",
        "http://a..b/x",
        f"http://{'a' * 64}/x",
    ],
)
def test_invalid_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match="is not an http or https address"):
        download(url, tmp_path / "f")


def test_redirections_to_files_and_ftp_are_refused(server, tmp_path: Path) -> None:
    server.faults = [f"to:{server.url}/elsewhere"]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    (tmp_path / "secret").write_text("x")
    for place, said in (
        (f"file://{tmp_path}/secret", "not allowed"),
        ("ftp://127.0.0.1:9/x", "unknown url type: ftp"),
        (server.url, "infinite loop"),
    ):
        server.faults = [f"to:{place}"] * 40
        with pytest.raises(DataError, match=said) as caught:
            get(server, tmp_path / "g")
        assert "\n" not in caught.value.message
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize("place", ["http://a..b/x", "http://[bad/x"])
def test_a_redirection_to_an_invalid_address_is_an_error(server, tmp_path: Path, place: str) -> None:
    server.faults = [f"to:{place}"]
    with pytest.raises(DataError, match="sent an address"):
        get(server, tmp_path / "f")


def test_an_empty_hash_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'' is not a SHA-256"):
        download("http://127.0.0.1:9/x", tmp_path / "f", sha256="")


def test_a_wrong_hash_leaves_nothing_behind(server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"begins with {SHA256[:8]} instead of 0123abcd"):
        get(server, tmp_path / "f", sha256="0123abcd")
    assert left(tmp_path) == []
    for wrong in ("xyz", "0123", SHA256 + "0"):
        with pytest.raises(UsageError, match="is not a SHA-256"):
            get(server, tmp_path / "f", sha256=wrong)


def test_a_target_that_is_a_folder_or_below_a_file_is_an_error(server, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        get(server, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        get(server, tmp_path / "file" / "f")


def notes(server: Server, **said: object) -> str:
    return json.dumps({"url": server.url, "tag": server.tag, "modified": "", "total": len(BODY), **said})


def test_a_complete_part_requires_no_request(server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY)
    (tmp_path / "f.part.json").write_text(notes(server))
    assert get(server, tmp_path / "f").read_bytes() == BODY and server.requests == []


@pytest.mark.parametrize("said", [None, "", "{}", "[1]", '{"other": 1}', '{"url": "http://other/x", "tag": "v1"}'])
def test_a_part_without_matching_notes_is_discarded(server, tmp_path: Path, said: str | None) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    if said is not None:
        (tmp_path / "f.part.json").write_text(said)
    assert get(server, tmp_path / "f").read_bytes() == BODY and server.asked == [None]


def test_a_part_with_the_wrong_hash_is_downloaded_again(server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    (tmp_path / "f.part.json").write_text(notes(server))
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY
    assert server.asked == ["bytes=1000-", None]


def test_a_part_longer_than_the_file_is_discarded(server, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(BODY + b"x")
    (tmp_path / "f.part.json").write_text(notes(server))
    assert get(server, tmp_path / "f").read_bytes() == BODY


def test_a_killed_download_is_resumed(server, tmp_path: Path) -> None:
    server.faults = ["slow"]
    process = subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, server.url])
    part, deadline = tmp_path / "f.part", time.monotonic() + 600
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "f").exists()
    arrived = part.stat().st_size
    assert 0 < arrived < len(BODY) and part.read_bytes() == BODY[:arrived]
    assert get(server, tmp_path / "f").read_bytes() == BODY and server.asked == [None, f"bytes={arrived}-"]


def test_a_full_disk_is_reported_and_the_part_is_kept(server, tmp_path: Path) -> None:
    def no_more_than_200_000_bytes() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", IN_A_PROCESS, server.url]
    ran = subprocess.run(
        command, preexec_fn=no_more_than_200_000_bytes, capture_output=True, text=True, env=environment, check=False
    )
    assert ran.returncode == 1 and "cannot write f.part: File too large" in ran.stderr
    arrived = (tmp_path / "f.part").read_bytes()
    assert 0 < len(arrived) <= 200_000 and BODY.startswith(arrived)
    assert get(server, tmp_path / "f").read_bytes() == BODY and server.asked == [None, f"bytes={len(arrived)}-"]


def test_two_processes_download_once(server, tmp_path: Path) -> None:
    server.faults = ["slow"]
    both = [subprocess.Popen([sys.executable, "-c", IN_A_PROCESS, server.url]) for _ in range(2)]
    assert [process.wait(900) for process in both] == [0, 0]
    assert (tmp_path / "f").read_bytes() == BODY and len(server.requests) == 1
