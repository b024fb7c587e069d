"""The whole line as a user runs it: real processes, real files."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import make_images

SMALL = ("--backbone", "cnn", "--set", "model.filters=16", "--image-size", 32, "--epochs", 2, "--precision", "fp32")


def test_split_train_eval_compare(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos")
    assert cli("split", data, "--test-fraction", "0.25").code == 0
    part_a = cli("train", *SMALL, "--epochs", 4, "--lr", "1e-3", "--mode", "full", "--name", "part-a")
    assert part_a.code == 0 and "run:  runs/part-a" in part_a.out and "epoch 1/4" in part_a.err
    part_b = cli("train", *SMALL, "--mode", "head", "--dropout", "0.3", "--name", "part-b", "--json")
    assert part_b.json["config"]["model"]["dropout"] == 0.3 and part_b.json["directory"] == "runs/part-b"
    assert cli("train", "--config", "runs/part-b/config.yaml", "--set", "name=again").code == 0
    first, second = (json.loads(Path(f"runs/{name}/record.json").read_text()) for name in ("part-b", "again"))
    assert [e["val_loss"] for e in first["history"]] == [e["val_loss"] for e in second["history"]]

    evaluated = cli("eval", "runs/part-a", "--json")
    assert evaluated.code == 0, evaluated.err
    assert evaluated.json["num_images"] == 15 and evaluated.json["look"] == 1
    assert cli("eval", "runs/part-b/record.json").out.count("test set evaluated 2 times") == 1
    with Path("runs/part-a/predictions-test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 15 and set(rows[0]) == {
        "path",
        "true",
        "predicted",
        "sha256",
        "p_class0",
        "p_class1",
        "p_class2",
    }
    right = sum(row["true"] == row["predicted"] for row in rows) / 15
    record = json.loads(Path("runs/part-a/record.json").read_text())
    assert record["test_accuracy"] == pytest.approx(right) and record["num_test"] == 15
    names = {"confusion", "per_class", "reliability", "mistakes", "grid"}
    for suffix in ("png", "svg"):
        assert {file.name for file in Path("runs/part-a/figures").glob(f"*.{suffix}")} == {
            f"{n}-test.{suffix}" for n in names
        }

    compared = cli("compare", "runs/part-a/record.json", "runs/part-b/record.json")
    assert compared.code == 0
    last = compared.out.strip().splitlines()[-1]
    assert last.endswith(".") and "part-a" in last and "part-b" in last

    validated = cli("eval", "runs/part-b", "--subset", "val", "--json")
    assert validated.json["metrics"]["accuracy"]["value"] == pytest.approx(first["val_accuracy"])
    assert validated.json["look"] is None


def test_train_says_what_is_missing(cli) -> None:
    ran = cli("train", *SMALL)
    assert ran.code == 2 and "no manifest in splits/" in ran.err and "inat-ft split" in ran.err
    assert cli("train", *SMALL, "--split", "nowhere.csv").code == 2


def test_changed_images_are_refused_until_told_otherwise(cli, tmp_path: Path) -> None:
    data = make_images(tmp_path / "photos")
    cli("split", data)
    assert cli("train", *SMALL).code == 0
    (data / "class0" / "000.png").write_bytes((data / "class1" / "000.png").read_bytes())
    (data / "class2" / "003.png").unlink()
    ran = cli("train", *SMALL)
    assert ran.code == 1 and "1 image missing or unreadable, 1 image changed" in ran.err and "class0/000.png" in ran.err
    (data / "class2" / "003.png").write_bytes((data / "class2" / "004.png").read_bytes())
    assert cli("train", *SMALL, "--set", "data.changed=ignore").code == 0


def test_the_dry_run_shows_what_would_learn_and_trains_nothing(cli, manifest_file: Path) -> None:
    ran = cli(
        "train", "--split", manifest_file, "--mode", "partial", "--unfreeze-from", "layer4", "--dry-run", "--json"
    )
    assert ran.code == 0, ran.err
    stages = {row["stage"]: row for row in ran.json["stages"]}
    assert stages["layer3"]["state"] == "frozen" and stages["layer3"]["batch_norm"] == "frozen"
    assert stages["layer4"] == {
        "epochs": "1-5", "stage": "layer4", "parameters": 14964736, "trained": 14964736,
        "state": "trained", "lr": "0.0001", "batch_norm": "train",
    }  # fmt: skip
    assert ran.json["config"]["model"]["weights"] == "imagenet" and not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.droput=0.3"], "unknown key 'droput' in model: did you mean 'dropout'?"),
        (["--mode", "heat"], "unknown strategy 'heat': did you mean 'head'?"),
        (["--backbone", "resnet5O", "--weights", "none"], "unknown backbone 'resnet5O'"),
        (["--unfreeze-from", "layer9", "--mode", "partial", *SMALL], "unknown stage 'layer9' for cnn"),
        (["--device", "cuda:7"], "CUDA device"),
        (["--lr", "fast"], "(got 'fast')"),
        (["--augment", "much"], "data.augment: 'much' is not one of none, flip, standard"),
        (["--config", "none.yaml"], "no such file: none.yaml"),
        (["--resume", "runs/none"], "it has no config.yaml"),
        (["--alpha", "0.5", *SMALL], "--alpha requires --average wise-ft"),
    ],
)
def test_wrong_settings_end_with_two_and_one_clear_sentence(
    cli, manifest_file: Path, words: list[object], said: str
) -> None:
    split = [] if "--resume" in words else ["--split", manifest_file]
    ran = cli("train", *split, *words)
    assert ran.code == 2 and said in ran.err and "Traceback" not in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split", "x", "--workers", "999"], "less than or equal to 256 (got '999')"),
        (["split", "x", "--leakage", "foo"], "'foo' is not one of 'drop', 'keep', 'error'"),
        (["sweep", "run", "--count", "many"], "(got 'many')"),
    ],
)
def test_wrong_options_are_shown_as_they_were_given(cli, words: list[str], said: str) -> None:
    ran = cli(*words)
    assert ran.code == 2 and said in " ".join(ran.err.replace("│", " ").split()) and "Value error" not in ran.err


def test_version_help_strategies_and_quiet(cli, manifest_file: Path) -> None:
    assert cli("--version").out.startswith("inat-ft ")
    assert "compare" in cli("--help").out
    assert {row["name"] for row in cli("strategies", "--json").json} >= {"head", "partial", "full"}
    assert "unfreeze_from" in cli("strategies", "partial").out
    ran = cli("train", *SMALL, "--split", manifest_file, "--quiet")
    assert ran.code == 0 and ran.err == "" and len(ran.out.splitlines()) == 2


def test_a_run_is_resumed_by_its_name_too(cli, manifest_file: Path) -> None:
    words = ["--mode", "lp-ft", "--name", "mine", "--runs-dir", "there"]
    ran = cli("train", *SMALL, "--split", manifest_file, *words)
    assert ran.code == 0 and "warning: lp-ft trains only the head" in ran.err
    ran = cli("train", "--resume", "mine", "--runs-dir", "there")
    assert ran.code == 0 and "run:  there/mine" in ran.out


def test_a_fault_of_ours_shows_its_traceback_only_when_asked(cli, manifest_file: Path) -> None:
    Path("runs").write_text("in the way")
    ran = cli("train", *SMALL, "--split", manifest_file)
    assert ran.code == 1 and "Traceback" not in ran.err
    assert "Traceback" in cli("train", *SMALL, "--split", manifest_file, "--debug").err


def test_several_seeds_give_mean_and_spread(cli, manifest_file: Path) -> None:
    ran = cli("train", *SMALL, "--split", manifest_file, "--mode", "head", "--seeds", 3, "--name", "many", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["directories"] == [f"runs/many-seed{seed}" for seed in range(3)]
    assert ran.json["mean"] == pytest.approx(sum(ran.json["val_accuracy"]) / 3) and ran.json["deviation"] >= 0
