"""Networks and images that `predict` cannot use: what is said, and that nothing is written."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import inat_ft
from inat_ft.errors import DataError, UsageError


@pytest.fixture
def run(trained: Path) -> Path:
    return Path(shutil.copytree(trained, "run"))


def rewrite(run: Path, metadata: dict[str, str] | None = None, factor: float = 1.0) -> None:
    """Write the weights again, with other metadata, or with all of them multiplied."""
    file = run / "model.safetensors"
    with safe_open(file, "pt") as opened:
        known = opened.metadata()
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is not a mapping
    state = {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(state, file, known if metadata is None else metadata)


def test_weights_whose_output_overflows_are_refused(cli, run: Path, images: Path) -> None:
    rewrite(run, factor=1e30)
    ran = cli("predict", run, images / "class0", "--out", "out.csv")
    assert ran.code == 1 and "the network's output is not finite for 20 of 20 images" in ran.err
    assert "lower learning rate" in ran.err and not Path("out.csv").exists()


@pytest.mark.parametrize("metadata", [{}, {"classes": '["a", "a"]'}, {"config": "{", "classes": "[]"}])
def test_a_file_without_its_network_is_named(cli, run: Path, images: Path, metadata: dict[str, str]) -> None:
    rewrite(run, metadata)
    ran = cli("predict", run, images / "class0")
    assert ran.code == 1 and "run/model.safetensors" in ran.err and "Traceback" not in ran.err
    assert "bug" not in ran.err and len(ran.err.splitlines()) > 1


def test_missing_images_and_runs_are_named(run: Path, images: Path) -> None:
    for given, text in (([], "no images to classify"), ("nowhere", "no such image or folder: nowhere")):
        with pytest.raises(UsageError, match=text):
            inat_ft.predict(run, given)
    with pytest.raises(UsageError, match="no run to predict with"):
        inat_ft.predict([], images)
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="the folder empty has no files"):
        inat_ft.predict(run, "empty")
    Path("empty.csv").write_text("path,x,y,w,h\n")
    with pytest.raises(DataError, match=r"no image is listed in empty\.csv"):
        inat_ft.predict(run, "empty.csv")
    for number in range(8):
        Path(f"empty/{number}.png").write_bytes(b"x")
    with pytest.raises(DataError, match="cannot read any of the images") as caught:
        inat_ft.predict(run, "empty")
    assert caught.value.message.splitlines()[-1] == "..." and "empty/0.png" in caught.value.message


def test_more_images_than_a_terminal_shows_are_counted(cli, run: Path, images: Path) -> None:
    ran = cli("predict", run, images / "class0", images / "class1", "--top", 1)
    assert ran.code == 0 and "and 10 more: --out predictions.csv or --json has them all" in ran.out
    ran = cli("predict", run, images / "class0", images / "class1", "--out", "out.csv")
    assert "and 10 more\n" in ran.out and "predictions: out.csv" in ran.out
    assert len(Path("out.csv").read_text().splitlines()) == 41
    refused = cli("predict", run, "out.csv", "--out", "out.csv")
    assert refused.code == 2 and "--out out.csv is one of the inputs" in refused.err
