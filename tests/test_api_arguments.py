"""Bad arguments of the Python API: each raises UsageError with the name of the argument, and nothing is written."""

import inspect
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inat_ft_arguments.arguments import _RANGES, _hints, check_arguments

import inat_ft
from inat_ft.cli import commands

FUNCTIONS = [name for name in inat_ft.__all__ if inspect.isfunction(getattr(inat_ft, name))]

BAD: list[tuple[str, dict[str, Any], str]] = [
    # function, arguments, start of the message
    ("split", {"data": None}, "data=None is not a string or a path"),
    ("split", {"data": ""}, "data is an empty path"),
    ("split", {"data": "a\0b"}, "data='a.x00b' contains a null character"),
    ("split", {"data": "photos", "val_fraction": float("nan")}, "val_fraction=nan is not a finite number"),
    ("split", {"data": "photos", "val_fraction": "0.2"}, "val_fraction='0.2' is not a finite number"),
    ("split", {"data": "photos", "test_fraction": 2}, "test_fraction=2 is out of range"),
    ("split", {"data": "photos", "seed": -1}, "seed=-1 is out of range"),
    ("split", {"data": "photos", "seed": 10**400}, "seed=1000"),
    ("split", {"data": "photos", "seed": True}, "seed=True is not an integer"),
    ("split", {"data": "photos", "workers": -1}, "workers=-1 is out of range"),
    ("split", {"data": "photos", "leakage": "x"}, "leakage='x' is not 'drop' or 'keep' or 'error'"),
    ("split", {"data": "photos", "exclude": 3}, "exclude=3 is not a list of strings"),
    ("split", {"data": "photos", "near": "no"}, "near='no' is not True or False"),
    ("split", {"data": "photos", "progress": 3}, "progress=3 is not a callable"),
    ("train", {"config": 3}, "config=3 is not a string or a path or a RunConfig"),
    ("train", {"folds": "5"}, "folds='5' is not an integer"),
    ("train", {"settings": ["optim.lr=1"]}, "settings=.* is not a mapping"),
    ("train", {"callbacks": print}, "callbacks=.* is not a TrainCallbacks"),
    ("train", {"resume": ""}, "resume is an empty path"),
    ("evaluate", {"run": 3}, "run=3 is not a string or a path"),
    ("evaluate", {"run": "a", "subset": "train"}, "subset='train' is not 'test' or 'val'"),
    ("evaluate", {"run": "a", "image_size": 5000}, "image_size=5000 is out of range"),
    ("evaluate", {"run": "a", "coverage": "0.9"}, "coverage='0.9' is not a finite number"),
    ("predict", {"run": "a", "images": np.zeros((2, 2))}, "images=.* is not a string or a path or a list"),
    ("predict", {"run": "a", "images": ["b", None]}, "images=.* is not a string or a path or a list"),
    ("compare", {"metric": 3}, "metric=3 is not a string"),
    ("load", {"run": "a", "device": 3}, "device=3 is not a string or a device"),
    ("export", {"run": "a", "out": 3}, "out=3 is not a string or a path"),
    ("sweep", {"count": 0}, "count=0 is out of range"),
    ("tune", {"data": 3}, "data=3 is not a string or a path"),
    ("tune", {"data": "nowhere", "budget": "30m"}, "no such folder or manifest: nowhere"),
    ("tune", {"data": "photos", "strategies": 3}, "strategies=3 is not a list of strings"),
    ("audit", {"split": "s.csv", "limit": 0}, "limit=0 is out of range"),
    ("learning_curve", {"target": "most"}, "target='most' is not a finite number"),
    ("suggest", {"run": "a", "photos": "b", "count": 1.5}, "count=1.5 is not an integer"),
]


@pytest.mark.parametrize(("name", "arguments", "says"), BAD, ids=lambda value: str(value)[:60])
def test_bad_arguments(name: str, arguments: dict[str, Any], says: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(inat_ft.UsageError, match=says) as raised:
        getattr(inat_ft, name)(**arguments)
    assert raised.value.hint and "--" not in f"{raised.value} {raised.value.hint}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_unknown_argument_names_the_function(name: str) -> None:
    function = getattr(inat_ft, name)
    with pytest.raises(TypeError, match=rf"{name}\(\)"):
        function(*range(20)) if name != "compare" else function(bogus=1)


def test_the_ranges_are_the_widest_of_the_command_line() -> None:
    tops = [commands.load(name) for name in commands.listed()]
    found = [command for top in tops for command in (top, *getattr(top, "commands", {}).values())]
    options = [option for command in found for option in command.params if getattr(option, "min", None) is not None]
    for name, (least, most) in _RANGES.items():
        declared = [option for option in options if option.name == name]
        assert min(option.min for option in declared) == least, name
        widest = max(math.inf if option.max is None else option.max for option in declared)
        assert most >= 2**31 if widest == math.inf else most == widest, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_annotation_is_understood(name: str) -> None:
    function = inspect.unwrap(getattr(inat_ft, name))
    assert set(_hints(function)) == {*inspect.signature(function).parameters, "return"}


def test_numbers_of_other_types_and_single_values_are_accepted() -> None:
    seen = check_arguments(_function)(np.int64(3), Fraction(1, 2), names="a", paths=iter(["b"]))
    assert seen == (3, 0.5, ("a",), ["b"])


def _function(number: int, share: float, names: Sequence[str], paths: Iterable[str]) -> tuple[Any, ...]:
    return number, float(share), names, paths


def test_a_device_that_torch_does_not_know(trained: Path) -> None:
    with pytest.raises(inat_ft.UsageError, match='device="x": torch does not know this device'):
        inat_ft.load(trained, device="x")


def test_a_cross_validation_is_opened_by_text(tmp_path: Path) -> None:
    with pytest.raises(inat_ft.UsageError, match="is not a cross-validation"):
        inat_ft.CrossValidation.open(str(tmp_path))
