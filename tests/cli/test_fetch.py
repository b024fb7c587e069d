import io
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from inat_ft_datasets.datasets import INAT12K_CLASSES
from PIL import Image

from tests.data.serving import Server, serving


def nature(classes: tuple[str, ...] = INAT12K_CLASSES, **more: bytes) -> bytes:
    """A small iNaturalist-12K: two images per class in train, one in val, and hidden files."""
    rng, made = np.random.default_rng(0), io.BytesIO()
    with zipfile.ZipFile(made, "w") as out:
        for subset, count in (("train", 2), ("val", 1)):
            for name in classes:
                for number in range(count):
                    picture = io.BytesIO()
                    Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(picture, "JPEG")
                    out.writestr(f"inaturalist_12K/{subset}/{name}/{number}.jpg", picture.getvalue())
        out.writestr("inaturalist_12K/train/Aves/.DS_Store", b"x")
        out.writestr("inaturalist_12K/.DS_Store", b"x")
        out.writestr("__MACOSX/inaturalist_12K/._train", b"x")
        for name, content in more.items():
            out.writestr(name, content)
    return made.getvalue()


@pytest.fixture
def server():
    with serving(nature()) as made:
        yield made


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder without write permission, which does not apply to root."""
    mode = folder.stat().st_mode
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(mode)


def left(folder: str) -> list[str]:
    inside = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return sorted(path.name for path in inside if not path.name.endswith(".lock"))


def test_inat12k_is_fetched_once(server: Server, cli) -> None:
    server.faults = ["drop", "503"]
    ran = cli("fetch", "inat12k", "--to", "data/", "--url", server.url)
    assert (ran.code, ran.out) == (0, "data/inaturalist_12K: 30 images\n")
    assert "next: inat-ft split data/inaturalist_12K" in ran.err and "warning" not in ran.err
    assert left("data") == ["inaturalist_12K"] and len(server.requests) == 3
    again = cli("fetch", "inat12k", "--url", server.url, "--json")
    assert again.json == {"folder": "data/inaturalist_12K", "images": 30, "fetched": False}
    assert "already complete" in cli("fetch", "inat12k").out and len(server.requests) == 3
    split = cli("split", "data/inaturalist_12K")
    assert split.code == 0, split.err


def test_missing_images_are_reported(server: Server, cli) -> None:
    assert cli("fetch", "inat12k", "--url", server.url).code == 0
    Path("data/inaturalist_12K/train/Aves/1.jpg").unlink()
    ran = cli("fetch", "inat12k", "--url", server.url)
    assert ran.code == 1 and "29 of 30 images" in ran.err and "remove data/inaturalist_12K" in ran.err
    Path("data/inaturalist_12K/.fetched.json").write_text("{")  # as good as none: what is there must do
    assert cli("fetch", "inat12k", "--url", server.url).out == "data/inaturalist_12K: 29 images, already complete\n"


def test_a_complete_data_set_in_a_read_only_folder_is_accepted(server: Server, cli) -> None:
    assert cli("fetch", "inat12k", "--url", server.url).code == 0
    Path("data/inaturalist_12K.lock").unlink(missing_ok=True)
    before = sorted(Path("data").iterdir())
    with read_only(Path("data")):
        assert "already complete" in cli("fetch", "inat12k", "--url", server.url).out
    assert sorted(Path("data").iterdir()) == before and len(server.requests) == 1


@pytest.mark.parametrize(
    "make", [lambda folder: folder.write_text("mine"), lambda folder: folder.symlink_to("nowhere")]
)
def test_a_file_in_place_of_the_folder_is_found_before_the_download(server: Server, cli, make) -> None:
    Path("data").mkdir()
    make(Path("data/inaturalist_12K"))
    ran = cli("fetch", "inat12k", "--url", server.url)
    assert ran.code == 1 and "data/inaturalist_12K is not a folder" in ran.err and not server.requests


def test_an_existing_archive_is_used_and_can_be_kept(server: Server, cli) -> None:
    assert cli("fetch", "inat12k", "--to", "a", "--url", server.url, "--keep-archive").code == 0
    assert left("a") == ["inaturalist_12K", "nature_12K.zip"]
    Path("b").mkdir()
    Path("a/nature_12K.zip").rename("b/nature_12K.zip")
    ran = cli("fetch", "inat12k", "--to", "b", "--url", "http://127.0.0.1:9/x", "--json")
    assert ran.json["images"] == 30 and "using the existing archive" in ran.err and left("b") == ["inaturalist_12K"]


def test_a_killed_fetch_is_resumed(server: Server, cli) -> None:
    server.faults = ["slow"]
    command = [sys.executable, "-m", "inat_ft", "fetch", "inat12k", "--url", server.url]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    part, deadline = Path("data/nature_12K.zip.part"), time.monotonic() + 600
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and left("data") == ["nature_12K.zip.part", "nature_12K.zip.part.json"]
    ran = cli("fetch", "inat12k", "--url", server.url)
    assert ran.code == 0 and "resuming an earlier download" in ran.err and server.asked[1].startswith("bytes=")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (nature(**{"../../evil": b"x"}), "a name outside its folder"),
        (nature()[:-3000], "damaged"),
        (nature(**{"inaturalist_12K/train/Aves/" + "x" * 300: b"x"}), "an invalid name"),
        (b"<html>log in</html>", "not a zip file"),
        (nature(**{"inaturalist_12K/.fetched.json/x": b"x"}), "contains a folder .fetched.json"),
        (nature(classes=()), "no class folders with images in train/ and val/"),
    ],
)
def test_a_bad_archive_is_removed(server: Server, cli, body: bytes, said: str) -> None:
    good, server.body = server.body, body
    ran = cli("fetch", "inat12k", "--url", server.url)
    assert ran.code == 1 and said in ran.err and "another mirror" in ran.err and "Traceback" not in ran.err
    assert ran.out == "" and left("data") == [] and not Path("evil").exists()
    server.body = good
    assert cli("fetch", "inat12k", "--url", server.url).code == 0


def test_a_bad_archive_of_the_user_is_kept(cli) -> None:
    Path("data").mkdir()
    Path("data/nature_12K.zip").write_bytes(b"half")
    ran = cli("fetch", "inat12k")
    assert ran.code == 1 and "remove data/nature_12K.zip" in ran.err and left("data") == ["nature_12K.zip"]


def test_other_classes_cause_a_warning(server: Server, cli) -> None:
    server.body = nature(classes=(*INAT12K_CLASSES[:-1], "Virus"))
    ran = cli("fetch", "inat12k", "--url", server.url, "--quiet")
    assert ran.code == 0 and "missing: Reptilia; more: Virus" in ran.err


def test_errors_contain_a_hint(server: Server, cli) -> None:
    server.faults = ["404"]
    gone = cli("fetch", "inat12k", "--url", server.url, "--json")
    assert (gone.code, gone.out) == (1, "") and "answered 404" in gone.err and "mirror" in gone.err
    wrong = cli("fetch", "inat12k", "--url", server.url, "--sha256", "0" * 64)
    assert wrong.code == 1 and "SHA-256 begins with" in wrong.err and left("data") == []
    Path("data/inaturalist_12K/train").mkdir(parents=True)
    half = cli("fetch", "inat12k", "--url", server.url)
    assert half.code == 1 and "remove data/inaturalist_12K" in half.err
    Path("file").touch()
    for words in (
        ("inat12k", "--url", "file:///etc/passwd"),
        ("inat12k", "--sha256", "no"),
        ("inat12k", "--to", "file", "--url", server.url),
        ("digits", "--url", server.url),
        ("mnist",),
    ):
        ran = cli("fetch", *words, *(() if "--to" in words else ("--to", "new")))
        assert ran.code == 2 and "Traceback" not in ran.err, words


def test_the_digits_are_written_once(cli) -> None:
    assert cli("fetch", "digits", "--json").json == {"folder": "data/digits", "images": 1797, "fetched": True}
    again = cli("fetch", "digits")
    assert again.out == "data/digits: 1,797 images, already complete\n" and "inat-ft split data/digits" in again.err


@pytest.mark.parametrize(
    ("words", "code"),
    [(("--url", "ftp://x/y.zip"), 2), (("--url", "https://x/y.zip", "--sha256", "nope"), 2)],
)
def test_a_refused_fetch_leaves_no_folder(invoke, words: tuple[str, ...], code: int) -> None:
    assert invoke("fetch", "inat12k", "--to", "new/place", *words).code == code
    assert not Path("new").exists()


def test_a_failed_fetch_leaves_no_empty_folder(server: Server, invoke) -> None:
    server.faults = ["404", "404"]
    ran = invoke("fetch", "inat12k", "--to", "new/place", "--url", server.url)
    assert ran.code == 1 and "404" in ran.err
    assert not Path("new").exists()
    Path("kept").mkdir()
    assert invoke("fetch", "inat12k", "--to", "kept", "--url", server.url).code == 1
    assert Path("kept").is_dir()
