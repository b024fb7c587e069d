import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from inat_ft.cache.packed_images import Pixels, pixels_key
from inat_ft.images.decode import decode, load_image
from inat_ft.images.opening import ImageProblem, ProblemKind
from inat_ft.images.resizing import SQUASH, Resizing, to_square
from inat_ft.models.base import Preprocess

MODES = v2.InterpolationMode


def picture(height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(height * width).integers(0, 256, (3, height, width), np.uint8))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(300, 480), (640, 300), (224, 224), (100, 90), (37, 211)])
class TestPixels:
    def test_crop_is_what_torchvision_evaluates_on(self, height: int, width: int, interpolation: str) -> None:
        image = picture(height, width)
        theirs = v2.Compose([v2.Resize(256, MODES(interpolation), antialias=True), v2.CenterCrop(224)])
        assert torch.equal(to_square(image, 224, Resizing("crop", interpolation)), theirs(image))

    def test_squash_is_a_plain_resize(self, height: int, width: int, interpolation: str) -> None:
        image = picture(height, width)
        theirs = v2.Resize([224, 224], MODES(interpolation), antialias=True)
        assert torch.equal(to_square(image, 224, Resizing("squash", interpolation)), theirs(image))

    def test_pad_keeps_the_proportions_and_fills_up_with_black(
        self, height: int, width: int, interpolation: str
    ) -> None:
        image = picture(height, width)
        made = to_square(image, 224, Resizing("pad", interpolation))
        shape = [max(1, round(224 * side / max(height, width))) for side in (height, width)]
        inner = v2.Resize(shape, MODES(interpolation), antialias=True)(image)
        top, left = (224 - shape[0]) // 2, (224 - shape[1]) // 2
        assert made.shape == (3, 224, 224)
        assert torch.equal(made[:, top : top + shape[0], left : left + shape[1]], inner)
        assert made.sum(dtype=torch.int64) == inner.sum(dtype=torch.int64)


def test_a_very_long_image_is_cropped_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.transforms.v2.functional as F

    largest, resize = 0, F.resize

    def counting(image, *given, **more):
        nonlocal largest
        made = resize(image, *given, **more)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(F, "resize", counting)
    for shape in ((1, 20_000), (20_000, 1)):
        assert to_square(picture(*shape), 224, Resizing("crop")).shape == (3, 224, 224)
    assert largest <= 3 * 256 * 256 * 8


def test_rows_of_other_resizing_are_other_rows_and_the_default_key_is_that_of_earlier_versions(tmp_path: Path) -> None:
    assert pixels_key(32) == {"pixels": "4", "size": 32}
    keys = [
        pixels_key(32, Resizing(mode, how)) for mode in ("squash", "crop", "pad") for how in ("bilinear", "bicubic")
    ]
    assert len({json.dumps(key) for key in keys}) == 6
    file = tmp_path / "a.png"
    Image.fromarray(picture(40, 90).permute(1, 2, 0).numpy()).save(file)
    with ThreadPoolExecutor(1) as pool:
        for resizing in (SQUASH, Resizing("crop"), Resizing("pad", "bicubic")):
            from inat_ft.images.decode import sha256_of

            pixels = Pixels([file], [sha256_of(file)], torch.zeros(1), 32, tmp_path / "cache", pool, resizing)
            row = pixels.packed(lambda done, total: None).rows(torch.tensor([0]))[0]
            assert (row.numpy() == load_image(file, 32, resizing=resizing)).all()
    assert len(list((tmp_path / "cache" / "packed").iterdir())) == 3


def test_models_of_earlier_versions_can_be_read() -> None:
    said = Preprocess.model_validate({"image_size": 64, "resize": "whole image, bilinear, antialiased"})
    assert said.resizing == SQUASH
    again = Preprocess.model_validate_json(Preprocess(resize="crop", interpolation="bicubic").model_dump_json())
    assert again.resizing == Resizing("crop", "bicubic")


def test_train_eval_predict_and_export_use_one_resizing(invoke, manifest_file: Path, images: Path) -> None:
    small = ("--backbone", "cnn", "--image-size", "32", "--mode", "full", "--epochs", "1", "--name", "one")
    ran = invoke("train", "--split", manifest_file, *small, "--resize", "crop", "--set", "data.interpolation=bicubic")
    assert ran.code == 0, ran.err
    record = json.loads(Path("runs/one/record.json").read_text())
    assert (record["preprocess"]["resize"], record["preprocess"]["interpolation"]) == ("crop", "bicubic")
    assert (record["config"]["data"]["resize"], record["config"]["data"]["interpolation"]) == ("crop", "bicubic")

    from inat_ft.evaluation.predict import InferenceConfig, load_model, predict_files

    trained = load_model(Path("runs/one/model.safetensors"), InferenceConfig(device="cpu"))
    file = next(images.rglob("*.png"))
    shown = torch.from_numpy(load_image(file, 32, resizing=Resizing("crop", "bicubic")))[None]
    preprocess = trained.preprocess
    inputs = ((shown / 255 - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = trained.net(inputs).double().softmax(1)
    made = predict_files(trained, [file], "none", lambda done, total: None)
    assert torch.allclose(made, expected, atol=1e-5)
    wrong = invoke("train", "--split", manifest_file, *small[:-1], "two", "--resize", "stretch")
    assert wrong.code == 2 and "data.resize" in wrong.err and "crop" in wrong.err


class TestLimitOfPillow:
    def test_decoding_leaves_the_setting_of_the_process_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        for form in ("PNG", "GIF", "WEBP", "TIFF", "JPEG", "BMP"):
            file = io.BytesIO()
            Image.new("RGB", (90, 60), "red").save(file, form)
            assert decode(file.getvalue()).shape == (3, 60, 90)
            with pytest.raises(ImageProblem, match=r"90 x 60 is more than 5,000 pixels"):
                decode(file.getvalue(), 5000)
            assert PIL.Image.MAX_IMAGE_PIXELS == 1000
            file.seek(0)
            with pytest.raises(PIL.Image.DecompressionBombError):  # for others in the process it still holds
                Image.open(file)


class TestHeic:
    def test_without_the_extra_the_reason_names_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageProblem, match=r"pip install 'inat-ft\[heif\]'"):
            decode(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 100)

    def test_with_the_extra_it_is_read(self, tmp_path: Path) -> None:
        heif = pytest.importorskip("pillow_heif")
        grid = np.zeros((48, 64, 3), np.uint8)
        grid[:, :32], grid[:, 32:] = (200, 20, 20), (20, 20, 200)
        file = io.BytesIO()
        heif.from_pillow(Image.fromarray(grid)).save(file, quality=95)
        made = decode(file.getvalue())
        assert made.shape == (3, 48, 64)
        assert abs(made[:, 24, 10].int() - torch.tensor([200, 20, 20])).max() < 12
        assert abs(made[:, 24, 54].int() - torch.tensor([20, 20, 200])).max() < 12
        with pytest.raises(ImageProblem) as raised:
            decode(file.getvalue(), 100)
        assert raised.value.kind is ProblemKind.TOO_LARGE
        with pytest.raises(ImageProblem):
            decode(file.getvalue()[:200])
