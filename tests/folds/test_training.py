"""Cross-validation: what `inat-ft train --folds` writes, what it computes once, and how it resumes."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import pytest
from inat_ft_folds.result import CrossValidation
from inat_ft_metrics.macro import MacroF1
from PIL import Image

import inat_ft
from inat_ft.api.train import Run
from inat_ft.cache.extraction import Extraction
from inat_ft.config import RunConfig
from inat_ft.data.manifest import read_manifest
from inat_ft.errors import InatFtError, StorageError, UsageError
from inat_ft.training import TrainCallbacks

Make = Callable[..., RunConfig]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as text:
        return list(csv.DictReader(text))


def flags(config: RunConfig) -> list[str]:
    small = (
        "--backbone",
        "cnn",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--set",
        "model.filters=16",
    )
    return ["--split", str(config.data.split), "--mode", "head", "--precision", "fp32", *small]


def test_each_image_is_predicted_by_the_classifier_that_was_not_trained_on_it(cli, config: Make, manifest_file) -> None:
    ran = cli("train", "--folds", 3, "--epochs", 2, "--name", "cv", "--json", *flags(config()))
    assert ran.code == 0, ran.err
    manifest, folder = read_manifest(manifest_file), Path("runs/cv")
    found = rows(folder / "predictions-out-of-fold.csv")
    assert [row["path"] for row in found] == [
        path for path, subset in zip(manifest.paths, manifest.subsets, strict=True) if subset != 2
    ]
    assert list(found[0]) == ["path", "true", "predicted", "sha256", *(f"p_class{label}" for label in range(3))]
    by_path = {row["path"]: row for row in found}
    accuracies = []
    for number in (1, 2, 3):
        run = Run.open(folder / f"cv-fold-{number}")
        fold = read_manifest(folder / "splits" / f"fold-{number}.csv")
        held_out = rows(run.directory / "predictions-val.csv")
        assert [row["path"] for row in held_out] == [fold.paths[row] for row in fold.rows("val")]
        assert all(by_path[row["path"]] == row for row in held_out)
        assert run.val_accuracy == pytest.approx(mean(row["true"] == row["predicted"] for row in held_out))
        accuracies.append(run.val_accuracy)
        assert not (run.directory / "resume.pt").exists()
    accuracy = ran.json["metrics"]["accuracy"]
    assert accuracy["values"] == pytest.approx(accuracies)
    assert accuracy["mean"] == pytest.approx(mean(accuracies)) and accuracy["deviation"] == pytest.approx(
        stdev(accuracies)
    )
    assert (accuracy["lowest"], accuracy["highest"]) == pytest.approx((min(accuracies), max(accuracies)))
    assert {"log_loss", "macro_f1"} <= ran.json["metrics"].keys()
    assert "best epoch of each fold was chosen on its held-out images" in ran.json["notes"][0]
    assert json.loads((folder / "cross-validation.json").read_text())["complete"] is True
    text = (folder / "folds.svg").read_text(encoding="utf-8")
    assert f"mean {accuracy['mean']:.4f}" in text and f"standard deviation {accuracy['deviation']:.4f}" in text
    with Image.open(folder / "folds.png") as image:
        assert image.width > 600


def test_the_figure_can_be_left_out(config: Make) -> None:
    found = inat_ft.train(config(**{"track.files": False}), folds=2)
    assert not list(found.directory.glob("folds.*"))


@pytest.mark.parametrize("more", [{}, {"data.augment": "flip"}], ids=["plain", "flip"])
def test_the_frozen_layers_are_computed_once_for_all_folds(config: Make, monkeypatch, more) -> None:
    computed: list[int] = []
    compute = Extraction._rows

    def count(self: Extraction, module, inputs):
        computed.append(len(inputs))
        return compute(self, module, inputs)

    monkeypatch.setattr(Extraction, "_rows", count)
    found = inat_ft.train(config(**{"compute.cache": "prefix", "optim.epochs": 1, **more}), folds=3)
    assert len(found.runs) == 3
    views = 2 if more else 1
    assert sum(computed) == 45 * views


def interrupt_after(fold: int) -> TrainCallbacks:
    """Return callbacks that stop the training after the first epoch of a fold."""
    started: list[str] = []

    def log(line: str) -> None:
        if line.startswith("fold "):
            started.append(line)

    def on_epoch(epoch) -> None:
        if len(started) == fold and epoch.epoch == 1:
            raise KeyboardInterrupt

    return TrainCallbacks(log=log, on_epoch=on_epoch)


def test_an_interrupted_cross_validation_resumes_with_the_folds_not_done(config: Make) -> None:
    whole = inat_ft.train(config(), folds=3, name="whole")
    with pytest.raises(KeyboardInterrupt) as stopped:
        inat_ft.train(config(), folds=3, name="part", callbacks=interrupt_after(2))
    assert stopped.value.__notes__ == ['resume: inat_ft.train(resume="runs/part")']
    first = Path("runs/part/part-fold-1/record.json")
    before = first.read_bytes()
    with pytest.raises(UsageError, match="is not finished"):
        CrossValidation.open(Path("runs/part"))
    with pytest.raises(UsageError, match="is a cross-validation"):
        inat_ft.train(resume="runs/part")
    with pytest.raises(UsageError, match="has 3 folds, not 4"):
        inat_ft.train(resume="runs/part", folds=4)
    lines: list[str] = []
    found = inat_ft.train(resume="runs/part", folds=3, callbacks=TrainCallbacks(log=lines.append))
    assert [line for line in lines if line.startswith("fold ")] == ["fold 2 of 3", "fold 3 of 3"]
    assert first.read_bytes() == before
    assert found.summary.metrics == whole.summary.metrics
    assert found.predictions.read_bytes() == whole.predictions.read_bytes()
    assert str(inat_ft.train(resume="runs/part", folds=3)) == str(found)  # a finished one is returned as it is


def test_the_command_resumes_by_the_folder_alone(cli, config: Make) -> None:
    with pytest.raises(KeyboardInterrupt):
        inat_ft.train(config(), folds=2, name="part", callbacks=interrupt_after(2))
    ran = cli("train", "--resume", "part", "--seeds", 2)
    assert ran.code == 2 and "--seeds starts new runs, but --resume continues one" in ran.err
    ran = cli("train", "--resume", "part")
    assert ran.code == 0, ran.err
    assert "fold 2 of 2" in ran.err and "fold 1 of 2" not in ran.err and "2 folds: validation accuracy" in ran.out


def test_epochs_chosen_on_training_images_need_no_note(config: Make) -> None:
    assert inat_ft.train(config(**{"stop.monitor": "train_loss"}), folds=2).summary.notes == []


def test_an_error_before_the_first_fold_leaves_no_folder(config: Make) -> None:
    with pytest.raises(InatFtError):
        inat_ft.train(config(**{"model.weights": "missing.safetensors"}), folds=3, name="cv")
    assert not Path("runs/cv").exists()


def test_a_full_disk_before_the_first_fold_leaves_no_folder(config: Make, monkeypatch) -> None:
    def full(*given: object) -> None:
        raise StorageError("cannot write: No space left on device")

    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr("inat_ft_folds.training.write_summary", full)
        inat_ft.train(config(), folds=3, name="cv")
    assert not Path("runs/cv").exists()
    monkeypatch.setattr("inat_ft_folds.training.write_predictions", full)
    with pytest.raises(StorageError) as stopped:
        inat_ft.train(config(), folds=2, name="cv")
    assert stopped.value.__notes__ == ['resume: inat_ft.train(resume="runs/cv")']


def test_a_metric_that_is_not_finite_is_left_out(config: Make, monkeypatch) -> None:
    monkeypatch.setattr(MacroF1, "value", lambda self, predictions: math.nan)
    lines: list[str] = []
    found = inat_ft.train(config(), folds=2, name="cv", callbacks=TrainCallbacks(log=lines.append))
    assert "macro_f1" not in found.summary.metrics and any(
        "returned nan, which is not finite" in each for each in lines
    )
    assert CrossValidation.open(Path("runs/cv")).summary == found.summary


@pytest.mark.parametrize("words, text", [
    (("--folds", 3, "--seeds", 2), "--folds cannot be used with --seeds"),
    (("--folds", 3, "--find-lr"), "--folds cannot be used with --find-lr"),
    (("--folds", 1), "Invalid value for '--folds'"),
    (("--folds", 50), "has only 45 training and validation images or groups"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(cli, config: Make, words, text: str) -> None:
    ran = cli("train", *words, *flags(config()))
    assert ran.code == 2 and text in ran.err and not Path("runs").exists()


def test_several_processes_are_refused(config: Make, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="does not work with several processes"):
        inat_ft.train(config(), folds=3)


def test_commands_for_single_runs_name_the_folds(cli, config: Make) -> None:
    found = inat_ft.train(config(), folds=2, name="cv")
    ran = cli("eval", "runs/cv")
    assert ran.code == 2 and "runs/cv is a cross-validation, not a single run" in ran.err
    for words in (
        ("predict", "runs/cv", "."),
        ("export", "runs/cv"),
        ("eval", "runs/cv/cross-validation.json"),
        ("runs", "show", "cv"),
    ):
        ran = cli(*words)
        assert ran.code == 2 and "is a cross-validation, not a single run" in ran.err
    ran = cli("eval", found.runs[0].directory)
    assert ran.code == 2 and "fold-1.csv has no test images" in ran.err and "train once without --folds" in ran.err
    ran = cli("train", "--folds", 2, "--resume", found.runs[0].directory)
    assert ran.code == 2 and "is a single run" in ran.err
    ran = cli("runs")
    assert "interrupted" not in ran.out
    ran = cli("runs", "--runs-dir", "runs/cv")
    assert "cv-fold-1" in ran.out and "cv-fold-2" in ran.out


def test_a_damaged_summary_is_named(config: Make) -> None:
    inat_ft.train(config(), folds=2, name="cv")
    file = Path("runs/cv/cross-validation.json")
    written = json.loads(file.read_text())
    for changes, text in (
        ({"folds": "two"}, "folds: 'two' is not an integer"),
        ({"folds": 1}, "folds: 1 is less than the minimum, 2"),
        ({"folds": 3}, "not those of 3 folds"),
        ({"runs": written["runs"][:1]}, "not those of 2 folds"),
        ({"metrics": {}}, "not those of 2 folds"),
    ):
        file.write_text(json.dumps({**written, **changes}))
        with pytest.raises(InatFtError, match=rf"cross-validation\.json: .*{text}"):
            CrossValidation.open(file)


def test_a_removed_fold_is_named_and_trained_again(config: Make, monkeypatch) -> None:
    found = inat_ft.train(config(), folds=2, name="cv")
    shutil.rmtree("runs/cv/cv-fold-2")
    with pytest.raises(inat_ft.UsageError, match="cv-fold-2") as caught:
        CrossValidation.open(Path("runs/cv"))
    assert "inat-ft train --resume runs/cv" in caught.value.hint
    again = inat_ft.train(resume="runs/cv", folds=2)
    assert again.accuracy.values == found.accuracy.values
    assert CrossValidation.open(Path("runs/cv")).runs[1].directory.is_dir()
    renamed = Path("runs/cv").rename("runs/renamed")
    shutil.rmtree(renamed / "cv-fold-1")
    monkeypatch.chdir(renamed)
    assert inat_ft.train(resume=".", folds=2).accuracy.values == found.accuracy.values
    assert sorted(path.name for path in Path().glob("*fold-[0-9]")) == ["cv-fold-1", "cv-fold-2"]
