"""Boxes in a CSV: parts of image files, as MegaDetector gives them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inat_ft.data.manifest import read_manifest
from inat_ft.errors import DataError
from inat_ft.images.boxes import Box, add_box, split_path
from inat_ft.images.decode import load_image, sha256_of
from inat_ft.images.resizing import crop
from inat_ft.training import train

ROW = {"x": "0.25", "y": "0.5", "w": "0.5", "h": "0.25"}
SUFFIX = "#xywh=0.25,0.5,0.5,0.25"


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (64, 48), red: int | None = None) -> Image.Image:
    grid = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    if red is not None:
        grid[..., 0] = red
    image = Image.fromarray(grid)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)
    return image


def test_a_path_holds_its_box() -> None:
    assert add_box("a/b.jpg", ROW) == f"a/b.jpg{SUFFIX}"
    assert split_path(Path(f"a/b.jpg{SUFFIX}")) == (Path("a/b.jpg"), Box(0.25, 0.5, 0.5, 0.25))
    assert add_box("a/b.jpg", dict.fromkeys("xywh", "")) == "a/b.jpg"
    assert add_box("a/b.jpg", {"x": "48.1", "y": "11.5"}) == "a/b.jpg"  # columns of something else
    assert split_path(Path("a/b#1.jpg")) == (Path("a/b#1.jpg"), None)


@pytest.mark.parametrize(
    "values",
    ["0.5 0 0.6 1", "-0.1 0 0.5 0.5", "0 0 0 1", "a 0 1 1", "0.1 0 0.5 ", "0 0 1", "nan 0 1 1", "1 0 0.001 1"],
)
def test_a_box_outside_the_image_is_refused(values: str) -> None:
    with pytest.raises(DataError, match="is not inside the image"):
        add_box("a.jpg", dict(zip("xywh", values.split(" "), strict=False)))


def test_a_box_is_the_smallest_part_that_contains_it() -> None:
    pixels = torch.arange(3 * 10 * 20).reshape(3, 10, 20)
    assert torch.equal(crop(pixels, Box(0.24, 0.5, 0.5, 0.41)), pixels[:, 5:10, 4:15])
    assert torch.equal(crop(pixels, Box(0.1, 0.1, 0.3, 0.7)), pixels[:, 1:8, 2:8])
    assert crop(pixels, Box(0.99, 0.99, 1e-9, 1e-9)).shape == (3, 1, 1)
    assert torch.equal(crop(pixels, Box(0, 0, 1.0009, 1)), pixels)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_is_cropped_from_the_upright_image_before_resizing(tmp_path: Path, orientation: int) -> None:
    whole = picture(tmp_path / "whole.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole.save(tmp_path / "whole.png", exif=exif)
    upright = whole if orientation == 1 else whole.transpose(Image.Transpose.ROTATE_270)
    width, height = upright.size
    upright.crop((width // 4, height // 2, width * 3 // 4, height * 3 // 4)).save(tmp_path / "part.png")
    part = load_image(tmp_path / f"whole.png{SUFFIX}", 32)
    assert np.array_equal(part, load_image(tmp_path / "part.png", 32))
    assert not np.array_equal(part, load_image(tmp_path / "whole.png", 32))


def test_hashes_of_whole_files_are_those_of_their_content(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    whole = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert sha256_of(tmp_path / "a.png") == whole
    others = {sha256_of(tmp_path / f"a.png#xywh={box}") for box in ("0.25,0.5,0.5,0.25", "0.25,0.5,0.5,0.5", "0,0,1,1")}
    assert len(others | {whole}) == 4


@pytest.fixture
def boxed(tmp_path: Path) -> tuple[Path, Path]:
    """A CSV of boxes in larger images, and a CSV of the same images cropped; the boxes of three classes differ in red."""
    lists = {name: ["path,label,subset,x,y,w,h"] for name in ("whole", "cropped")}
    for number in range(36):
        file = f"{number:02d}.png"
        image = picture(tmp_path / "whole" / file, number, red=number % 3 * 100)
        (tmp_path / "cropped").mkdir(exist_ok=True)
        image.crop((16, 24, 48, 36)).save(tmp_path / "cropped" / file)
        label = f"class{number % 3},{'train' if number < 18 else 'val' if number < 27 else 'test'}"
        lists["whole"].append(f"{file},{label},0.25,0.5,0.5,0.25")
        lists["cropped"].append(f"{file},{label},,,,")
    for name, lines in lists.items():
        (tmp_path / name / "images.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "whole" / "images.csv", tmp_path / "cropped" / "images.csv"


@pytest.mark.slow
def test_training_evaluation_and_prediction_use_the_boxes(boxed, config, directories, cli, tmp_path: Path) -> None:
    runs, results, predicted = [], [], []
    for file in boxed:
        out = tmp_path / f"{file.parent.name}.csv"
        assert cli("split", file, "--out", out, "--no-near").code == 0
        assert cli("split", "--check", out).code == 0
        runs.append(train(config(data__split=str(out), compute__cache="packed"), directories))
        results.append(cli("eval", runs[-1][1], "--json").json)
        images = file if file.parent.name == "whole" else file.parent
        predicted.append([each for each in cli("predict", runs[-1][1], images, "--json").json if "png" in each["path"]])
    assert [epoch.val_loss for epoch in runs[0][0].history] == [epoch.val_loss for epoch in runs[1][0].history]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert [each["top"] for each in predicted[0]] == [each["top"] for each in predicted[1]]
    assert predicted[0][0]["path"].endswith(f"00.png{SUFFIX}")


def test_boxes_of_one_file_stay_in_one_subset(tmp_path: Path, cli) -> None:
    lines = ["path,label,x,y,w,h"]
    for number in range(30):
        picture(tmp_path / "photos" / f"{number}.png", number)
        lines += [f"{number}.png,fox,0,0,0.5,1", f"{number}.png,hare,0.5,0,0.5,1"]
    (tmp_path / "photos" / "images.csv").write_text("\n".join(lines))
    for words in ((), ("--group-by", "^[01]")):
        assert cli("split", "photos/images.csv", "--out", "m.csv", "--force", *words).code == 0
        manifest = read_manifest(Path("m.csv"))
        assert len(set(manifest.hashes)) == len(manifest.paths) == 60
        subsets: dict[str, set[int]] = {}
        for path, subset in zip(manifest.paths, manifest.subsets.tolist(), strict=True):
            subsets.setdefault(path.partition("#")[0], set()).add(subset)
        assert {len(each) for each in subsets.values()} == {1}


def test_a_list_without_boxes_has_the_manifest_of_earlier_versions(boxed, cli) -> None:
    cropped, plain = boxed[1], boxed[1].with_name("plain.csv")
    plain.write_text(cropped.read_text().replace(",x,y,w,h", "").replace(",,,,", ""))
    found = [cli("split", file, "--out", f"{file.parent.name}-{file.name}", "--json").json for file in (cropped, plain)]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    lines = Path("cropped-plain.csv").read_text().splitlines()
    assert lines[1] == "path,label,subset,sha256,group"
    digest = hashlib.sha256((cropped.parent / "00.png").read_bytes()).hexdigest()
    assert lines[2] == f"00.png,class0,train,{digest},"


def test_wrong_boxes_and_links_are_named(boxed, tmp_path: Path, cli) -> None:
    text = boxed[0].read_text()
    boxed[0].write_text(text.replace("0.25,0.5,0.5,0.25", "0.25,0.5,0.5,2", 1))
    refused = cli("split", boxed[0], "--out", "m.csv")
    assert (refused.code, f"{boxed[0]}, line 2: the box x 0.25, y 0.5, w 0.5, h 2 is not" in refused.err) == (1, True)
    outside = picture(tmp_path / "outside.png")
    outside.save(tmp_path / "outside.png")
    (boxed[0].parent / "00.png").unlink()
    (boxed[0].parent / "00.png").symlink_to(tmp_path / "outside.png")
    boxed[0].write_text(text)
    found = cli("split", boxed[0], "--out", "m.csv", "--json").json
    assert found["left_out"] == [{"path": f"00.png{SUFFIX}", "reason": "a link out of the folder"}]


def test_a_file_that_changed_is_an_error(boxed, config, directories, cli, tmp_path: Path) -> None:
    cli("split", boxed[0], "--out", tmp_path / "m.csv", "--no-near")
    picture(boxed[0].parent / "05.png", 99)
    with pytest.raises(DataError, match=r"05\.png"):
        train(config(data__split=str(tmp_path / "m.csv")), directories)
