"""Pictures of images in reports and figures have the right shape and show what they claim to show."""

import base64
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from inat_ft_cam.cam import draw_cam
from inat_ft_figures.grids import draw_images, load_whole
from inat_ft_report.report import thumbnail
from PIL import Image

from inat_ft.engine.device import choose_compute
from inat_ft.errors import DataError
from inat_ft.evaluation.predict import LoadedModel
from inat_ft.metrics.base import Predictions
from inat_ft.models.base import Preprocess
from inat_ft.models.net import make_net
from tests.evaluation.test_cam import Colours

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """Three squares side by side: red, green and blue."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    for number, color in enumerate((RED, GREEN, BLUE)):
        pixels[:, 40 * number : 40 * (number + 1)] = color
    Image.fromarray(pixels).save(tmp_path / "flag.png")
    return tmp_path / "flag.png"


def one(file: Path) -> Predictions:
    probabilities = np.array([[0.2, 0.7, 0.1]])
    return Predictions(("red", "green", "blue"), [file.name], [""], np.array([0]), np.array([1]), probabilities)


def colored(file: Path, color: tuple[int, int, int]) -> np.ndarray:
    """Return the rows and columns of pixels in which a color is strong, `[N, 2]`."""
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.argwhere(np.abs(pixels - color).max(-1) < 40)


def test_a_whole_image_keeps_its_shape(flag: Path) -> None:
    assert load_whole(flag, 60).shape == (20, 60, 3) and load_whole(flag, 240).shape == (80, 240, 3)
    boxed = load_whole(Path(f"{flag}#xywh=0.3334,0,0.3332,1"), 30)
    assert boxed.shape == (30, 30, 3) and (boxed[15, 15] == GREEN).all()
    (flag.parent / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.png: not an image"):
        load_whole(flag.parent / "broken.png", 60)


def test_thumbnails_of_reports_are_not_distorted(flag: Path) -> None:
    data = thumbnail(flag)
    with Image.open(BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        assert image.size == (160, 53)


def test_images_of_figures_are_not_distorted(flag: Path) -> None:
    draw_images(one(flag), [0], flag.parent / "grid", flag.parent, "title")
    height, width = np.ptp(colored(flag.parent / "grid.png", GREEN), axis=0) + 1
    assert height == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize(("resize", "shown"), [("squash", True), ("pad", True), ("crop", False)])
def test_a_map_lies_on_the_part_of_the_image_that_the_network_sees(flag: Path, resize: str, shown: bool) -> None:
    net = make_net("colours", Colours(), 3, 0.0).eval()
    trained = LoadedModel(
        net,
        ("red", "green", "blue"),
        Preprocess(image_size=32, resize=resize, mean=(0, 0, 0), std=(1, 1, 1)),
        choose_compute("cpu", "fp32"),
    )
    draw_cam(trained, one(flag), flag.parent, "test", flag.parent)
    file = flag.parent / "cam-test.png"
    assert len(colored(file, GREEN)) > 100
    assert [len(colored(file, color)) > 100 for color in (RED, BLUE)] == [shown, shown]
