"""A strategy with nothing to train is refused from the command line, and adapters survive an interruption."""

from __future__ import annotations

import hashlib

import pytest

from inat_ft.settings import load_config
from inat_ft.training import TrainCallbacks, train


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "bn-only", "--backbone", "squeezenet1_1"], "squeezenet1_1 has no BatchNorm"),
        (
            ["--mode", "lora", "--backbone", "resnet18", "--set", "strategy.adapt_from=fc"],
            "resnet18 has no Linear layer or ungrouped convolution from 'fc' on",
        ),
    ],
)
def test_it_ends_with_code_2_before_anything_is_written(
    invoke, manifest_file, tmp_path, dry: list[str], words: list[str], said: str
) -> None:
    ran = invoke("train", "--split", manifest_file, "--weights", "none", "--image-size", "32", *words, *dry)
    assert ran.code == 2 and said in ran.err and "--mode head" in ran.err and not ran.out
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(("mode", "is_warned"), [("head", True), ("partial", True), ("full", False)])
def test_layers_that_stay_random_cause_a_warning(config, directories, mode: str, is_warned: bool) -> None:
    lines: list[str] = []
    train(config(strategy__name=mode, optim__epochs=1), directories, TrainCallbacks(log=lines.append))
    assert any("frozen parameters keep random values" in line for line in lines) == is_warned


class Interrupted(Exception):
    pass


def test_lora_goes_on_to_the_same_file_after_an_interruption(config, directories) -> None:
    pytest.importorskip("timm")
    made = config(
        model__backbone="timm:test_convnext", strategy__name="lora", strategy__rank=2, stop__patience=0, name="a"
    )
    made = made.model_copy(update={"data": made.data.model_copy(update={"image_size": 64})})
    _, whole = train(made, directories)

    def interrupt(epoch) -> None:
        if epoch.epoch == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        train(made.model_copy(update={"name": "b"}), directories, TrainCallbacks(on_epoch=interrupt))
    broken = directories.runs / "b"
    assert (broken / "resume.pt").exists() and not (broken / "model.safetensors").exists()
    record, _ = train(load_config(broken / "config.yaml"), directories, resume=broken)
    assert record.parameters.trained < record.parameters.total
    digests = {hashlib.sha256((each / "model.safetensors").read_bytes()).hexdigest() for each in (whole, broken)}
    assert len(digests) == 1
