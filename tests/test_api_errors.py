"""Errors of the Python API name its arguments, not the options of the command line."""

import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import inat_ft
from inat_ft.hints import name_settings

SPACE = {"method": "grid", "parameters": {"lr": {"values": [1e-3]}}}
BAD_VALUES = {
    "train": [
        {"epoch": 3},
        {"settings": {"model.droput": 0.1}},
        {"settings": {"strategy.rank": 8}},
        {"mode": "ful"},
        {"mode": "head", "unfreeze_from": "layer4"},
        {"mode": "partial", "unfreeze_from": "layer9", "weights": "none"},
        {"mode": "lora", "settings": {"strategy.adapt_from": "layer9"}, "weights": "none"},
        {"mode": "head", "average": "wise-ft", "weights": "none"},
        {"alpha": 0.5},
        {"views": 2},
        {"resize": "weights", "settings": {"data.interpolation": "bicubic"}},
        {"resize": "weights", "weights": "none"},
        {"backbone": "cnn", "image_size": 16},
        {"backbone": "timm:"},
        {"weights": "nowhere.pth"},
        {"weights": "imagenet21k"},
        {"device": "tpu"},
        {"device": "cuda:99"},
        {"precision": "fp16", "device": "cpu", "weights": "none"},
        {"settings": {"compute.decode": "cuda"}, "device": "cpu", "weights": "none"},
        {"name": "con"},
        {"folds": 1},
        {"folds": 99},
        {"resume": "nowhere"},
        {"resume": "RUN", "epochs": 3},
        {"resume": "RUN", "split": None, "folds": 3},
        {"split": "nowhere.csv"},
        {"root": "nowhere"},
    ],
    "split": [
        {"data": "nowhere"},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"group_by": "("},
        {"group_by": "nowhere.csv"},
        {"corrections": "nowhere.csv"},
        {"classes_from": "genus"},
        {"pack": [9999]},
        {"exclude": ["*[1-9].png"]},
        {"out": "SPLIT", "seed": 9},
    ],
    "evaluate": [
        {"run": "nowhere"},
        {"coverage": 2},
        {"by_class": True},
        {"coverage": 0.9, "subset": "val"},
        {"taxa": "nowhere.csv"},
        {"precision": "bf16", "device": "mps"},
    ],
    "predict": [{"coverage": 2}, {"coverage": 0.9, "tta": "flip"}, {"by_class": True}, {"images": "nowhere"}],
    "compare": [{"runs": ()}, {"runs": ("RUN",)}, {"runs": ("nowhere", "RUN")}, {"metric": "acc"}],
    "load": [{"run": "nowhere"}],
    "export": [{"format": "tflite"}, {"out": "."}, {"push_to_hub": "name"}, {"push_to_hub": "a/b", "format": "onnx"}],
    "sweep": [{"epoch": 1}, {"backend": "aws"}, {"name": "a/b"}, {"spec": SPACE, "split": "nowhere.csv"}],
    "tune": [{"data": None}, {"data": "nowhere"}, {"budget": "soon"}, {"settings": {"seed": 1}}, {"out": "file/x"}],
    "audit": [{"split": "nowhere.csv"}, {"subsets": ["dev"]}, {"limit": 0}, {"device": "cuda:99"}],
    "learning_curve": [
        {"run": "RUN", "split": None, "config": "c.yaml"},
        {"settings": {"strategy.name": "full"}},
        {"sizes": 1},
    ],
    "suggest": [{"count": 0}, {"photos": "nowhere"}, {"run": "nowhere"}],
}


USUAL: dict[str, dict[str, Any]] = {
    "split": {"data": "PHOTOS"},
    "compare": {"runs": ("RUN", "RUN")},
    "predict": {"run": "RUN", "images": "PHOTOS"},
    "suggest": {"run": "RUN", "photos": "PHOTOS"},
    "tune": {"data": "SPLIT", "budget": "30m"},
    **{name: {"split": "SPLIT"} for name in ("train", "sweep", "learning_curve", "audit")},
    **{name: {"run": "RUN"} for name in ("evaluate", "load", "export")},
}
"""The arguments beside the bad ones."""


@pytest.mark.parametrize(
    ("name", "bad"), [(name, bad) for name, all_bad in BAD_VALUES.items() for bad in all_bad], ids=str
)
def test_an_error_names_no_option_of_the_command_line(name, bad, images: Path, manifest_file, trained: Path) -> None:
    Path("file").touch()
    places = {"PHOTOS": images, "SPLIT": Path(shutil.copy(manifest_file, "split.csv")), "RUN": trained}
    options = {
        key: places.get(value, value) if isinstance(value, str) else value for key, value in (USUAL[name] | bad).items()
    }
    runs = [places.get(run, run) for run in options.pop("runs", ())]
    with pytest.raises(inat_ft.InatFtError) as error:
        getattr(inat_ft, name)(*runs, **options)
    said = "\n".join([str(error.value), error.value.message, error.value.hint])
    assert not re.search(r"(?<!\w)--", said), said


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("train", "try a lower learning rate: --lr", "try a lower learning rate: lr"),
        ("train", "use --image-size 32 or more", "use image_size=32 or more"),
        ("suggest", "use --image-size 32 or more", "use data.image_size=32 or more"),
        ("train", "--views requires --augment standard", 'views requires augment="standard"'),
        ("learning_curve", "a run and --config both give the settings", "a run and config both give the settings"),
        ("train", "try: --set strategy.block=layer1", 'try: settings={"strategy.block": "layer1"}'),
        ("split", "leave it out: --exclude 'a b', or --no-near", 'leave it out: exclude=["a b"], or near=False'),
        ("split", "another --out, or: inat-ft split DATA --force", "another out, or: inat_ft.split(DATA, force=True)"),
        ("compare", "more (inat-ft train ... --seed N), or --group", "more (inat_ft.train(..., seed=N)), or group=True"),
        ("train", "resume it: inat-ft train --resume runs/a-1", 'resume it: inat_ft.train(resume="runs/a-1")'),
        ("tune", "continue: inat-ft tune --resume tunes/a", 'continue: inat_ft.tune(out="tunes/a")'),
        ("evaluate", "run: inat-ft eval runs/a --subset val", 'run: inat_ft.evaluate("runs/a", subset="val")'),
        ("train", "list all keys: inat-ft train --show-config", "list all keys: inat_ft.RunConfig()"),
        ("train", "list them: inat-ft split --check a.csv", "list them: inat-ft split --check a.csv"),
        ("train", "run `wandb login --relogin`", "run `wandb login --relogin`"),
    ],
)  # fmt: skip
def test_settings_are_named_as_the_function_takes_them(name: str, text: str, expected: str) -> None:
    error = inat_ft.UsageError(text, text)
    error.add_note(text)
    name_settings(error, function=getattr(inat_ft, name))
    assert (str(error), error.hint, error.__notes__) == (expected, expected, [expected])


def test_functions_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(inat_ft.train)) is inat_ft.train
