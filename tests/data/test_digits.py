import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from inat_ft_datasets.digits import is_complete, write_digits
from PIL import Image
from sklearn.datasets import load_digits

from inat_ft.errors import DataError, UsageError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def listing(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*.png"))}


def test_every_digit_is_written_once(digits: Path) -> None:
    files = sorted(digits.rglob("*.png"), key=lambda file: file.name)
    assert [file.stem for file in files] == [f"{number:04d}" for number in range(1797)]
    assert [int(file.parent.name) for file in files] == load_digits().target.tolist()
    assert sorted(path.name for path in digits.iterdir()) == ["train", "val"]


def test_a_fifth_of_each_digit_is_the_test_set(digits: Path) -> None:
    for digit in range(10):
        train, val = (len(list((digits / subset / str(digit)).iterdir())) for subset in ("train", "val"))
        assert abs(val - 0.2 * (train + val)) <= 0.5


def test_images_are_the_digits_in_grey_at_32_pixels(digits: Path) -> None:
    images = load_digits().images
    for file in list(digits.rglob("*.png"))[::50]:
        with Image.open(file) as picture:
            assert (picture.mode, picture.size) == ("L", (32, 32))
            small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float) * 16 / 255
        assert np.corrcoef(small.ravel(), images[int(file.stem)].ravel())[0, 1] > 0.97


def test_the_bytes_are_reproducible(digits: Path, tmp_path: Path) -> None:
    again = listing(write_digits(tmp_path / "again"))
    assert again == listing(digits) and sum(map(len, again.values())) < 2.5e6
    digest = hashlib.sha256(b"".join(name.encode() + content for name, content in again.items())).hexdigest()
    assert digest == "5d130ad6e9ea595ec2a21cac331cb321ca63caeac06c27ab15bd7a78f68311ea"


def test_a_complete_folder_is_not_written_again(digits: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in digits.rglob("*")}
    assert is_complete(digits) and write_digits(digits) == digits
    assert {file: file.stat().st_mtime_ns for file in digits.rglob("*")} == before


def test_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    for place in (tmp_path / "mine", tmp_path / "mine" / "file"):
        with pytest.raises(DataError, match="is not the complete digits"):
            write_digits(place)
    assert (tmp_path / "mine" / "file").read_text() == "x"
    with pytest.raises(UsageError, match="is not a folder"):
        write_digits(tmp_path / "mine" / "file" / "digits")
    some = write_digits(tmp_path / "empty-before")
    next(some.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="is not the complete digits"):
        write_digits(some)


def test_two_processes_can_write_at_once(tmp_path: Path) -> None:
    code = "import pathlib; from inat_ft_datasets.digits import write_digits; write_digits(pathlib.Path('d'))"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(900) for process in both] == [0, 0]
    assert is_complete(tmp_path / "d") and not (tmp_path / ".d.unfinished").exists()
