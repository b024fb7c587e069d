"""A message of a command names only options that this command has."""

import re
from pathlib import Path

import pytest

from inat_ft.errors import UsageError
from inat_ft.hints import name_settings
from tests.test_docs import known_options

SMALL = tuple(
    word
    for setting in ("model.backbone=cnn", "model.filters=16", "data.image_size=32", "compute.device=cpu")
    for word in ("--set", setting)
)
SWEEP = "method: grid\nparameters: {lr: {values: [1e-3, 1e-4]}, compute.cache: {value: prefix}}\n"
COMMANDS = {
    "train": ("train", "--split", "SPLIT", "--mode", "head", *SMALL, "--cache", "prefix"),
    "audit": ("audit", "SPLIT", *SMALL),
    "learning-curve": ("learning-curve", "--split", "SPLIT", *SMALL),
    "learning-curve of a strategy": (
        *("learning-curve", "--split", "SPLIT", "--mode", "partial", *SMALL, "--set", "compute.cache=packed"),
        *("--draws", "2", "--sizes", "2", "--set", "optim.epochs=1"),
    ),
    "suggest": ("suggest", "RUN", "PHOTOS"),
    "split": ("split", "PHOTOS", "--out", "new.csv", "--pack", "32"),
    "sweep run": ("sweep", "run"),
}


def unknown_options(command: str, text: str) -> set[str]:
    """Return the options that a message names, and that neither the command nor the one it tells to run has."""
    own = "\n".join(line.partition("inat-ft ")[0] for line in text.replace("inat-ft: ", "").splitlines())
    return set(re.findall(r"(?<![\w-])--[a-z-]+", own)) - known_options()[command]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_cache_that_cannot_be_written(name, cli, images: Path, manifest_file: Path, trained: Path) -> None:
    Path("file").touch()
    given = {"SPLIT": manifest_file, "RUN": trained, "PHOTOS": images}
    if name == "sweep run":
        Path("sweep.yaml").write_text(SWEEP, encoding="utf-8")
        created = cli(
            "sweep", "create", "sweep.yaml", "--set", f"data.split={manifest_file}", "--set", "mode=head", *SMALL
        )
        assert created.code == 0, created.err
    ran = cli(*(given.get(word, word) for word in COMMANDS[name]), "--cache-dir", "file/caches")
    assert ran.code == 1 and "cannot write the cache to file" in ran.err and "--cache-dir" in ran.err, ran.err
    assert not unknown_options(name.removesuffix(" of a strategy"), ran.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "--device", "cuda:99"), "--device cuda:99"),
        (("audit", "SPLIT", "--set", "compute.device=cuda:99"), "--set compute.device=cuda:99"),
        (("audit", "SPLIT", *SMALL, "--set", "data.image_size=16"), "use --set data.image_size=32 or more"),
    ],
)
def test_a_flag_of_train_in_another_command_is_a_setting(words, said, cli, manifest_file: Path) -> None:
    ran = cli(*(manifest_file if word == "SPLIT" else word for word in words), "--set", "model.weights=none")
    assert ran.code == 2 and said in ran.err and not unknown_options(words[0], ran.err), ran.err


@pytest.mark.parametrize(
    ("text", "known", "expected"),
    [
        ("use --precision fp32", {"--precision"}, "use --precision fp32"),
        ("use --precision fp32", {"--set"}, "use --set compute.precision=fp32"),
        ("use --precision fp32", set(), "use compute.precision=fp32"),
        ("use a smaller --image-size or backbone", {"--set"}, "use a smaller data.image_size or backbone"),
        ("try: --device auto, which", {"--set"}, "try: --set compute.device=auto, which"),
        ("try a lower learning rate: --lr", set(), "try a lower learning rate: optim.lr"),
        ("--device cuda:7: torch finds none", {"--set"}, "--set compute.device=cuda:7: torch finds none"),
        ("choose another --name, or: inat-ft train --name a", set(), "choose another name, or: inat-ft train --name a"),
        ("add --cam\nor --root FOLDER", {"--set"}, "add --cam\nor --set data.root=FOLDER"),
    ],
)
def test_settings_are_named_as_the_command_takes_them(text: str, known: set[str], expected: str) -> None:
    error = UsageError(text, text)
    name_settings(error, known)
    assert (error.message, error.hint) == (expected, expected)
