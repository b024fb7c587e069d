"""What a training and an evaluation leave in the run's folder: figures and a model card."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from inat_ft_run_files.card import SHOWN, write_card
from inat_ft_run_files.drawing import _fitted, draw_confusion
from inat_ft_run_files.figures import write_confusion, write_curves
from inat_ft_run_files.results import Results, validation
from inat_ft_sweeps.base import TrialJob
from inat_ft_sweeps.objective import TrainingObjective
from PIL import Image
from scipy.stats import binomtest

import inat_ft
from inat_ft.metrics.builtin import proportion
from inat_ft.records import Epoch, RunRecord, read_record
from inat_ft.training import TrainCallbacks, train

FILES = ("README.md", "confusion-val.png", "curves.png")


@pytest.fixture
def run(config, directories) -> tuple[RunRecord, Path]:
    return train(config(model__backbone="cnn", track__files=True, name="mine"), directories)


def header(file: Path) -> dict:
    return yaml.safe_load(file.read_text().split("---\n")[1])


def test_a_training_leaves_figures_and_a_card(run) -> None:
    record, directory = run
    for name in ("curves.png", "confusion-val.png"):
        with Image.open(directory / name) as image:
            assert min(image.size) > 200 and len(image.convert("RGB").getcolors(1 << 20)) > 20
    card = (directory / "README.md").read_text()
    for text in ("# mine", "random initial weights", record.split.fingerprint, "has not been evaluated on a test set"):
        assert text in card
    found = header(directory / "README.md")
    (entry,) = found["model-index"][0]["results"]
    assert found["pipeline_tag"] == "image-classification" and entry["dataset"]["split"] == "validation"
    accuracy = next(each for each in entry["metrics"] if each["type"] == "accuracy")
    assert accuracy["value"] == pytest.approx(record.val_accuracy, abs=1e-6)
    parsed = (
        pytest.importorskip("huggingface_hub").ModelCard.load(directory / "README.md").data
    )  # raises if it is invalid
    assert parsed.model_name == "mine" and parsed.eval_results[0].dataset_split == "validation"
    assert parsed.eval_results[0].metric_value == accuracy["value"] and parsed.to_dict()["library_name"] == "inat-ft"
    assert validation(record, directory).confusion.sum() == record.split.counts["val"]


def intervals(card: Path) -> dict[str, tuple[float, float, float]]:
    """Return value and interval of each metric of the validation images in the table of a card."""
    rows = re.findall(r"(?m)^\| validation \| \d+ \| ([^|]+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|$", card.read_text())
    return {name: (float(value), float(low), float(high)) for name, value, low, high in rows}


@pytest.mark.parametrize("group_by", [None, r"(\d)\.png$"])
def test_each_metric_has_the_interval_that_an_evaluation_gives_it(
    config, directories, images: Path, invoke, group_by: str | None, tmp_path: Path
) -> None:
    manifest = tmp_path / "photos.csv"
    inat_ft.split(images, out=manifest, group_by=group_by, val_fraction=0.5, near=False)
    run = train(config(data__split=str(manifest), track__files=True), directories)[1]
    trained = intervals(run / "README.md")
    ran = invoke("eval", run, "--subset", "val")
    assert ran.code == 0, ran.err
    metrics = read_record(run)[0].val.metrics
    assert "Gaffke" not in {each.method for each in metrics.values()} if group_by else metrics["ece"].low is not None
    expected = {
        label: tuple(
            pytest.approx(part, abs=1e-4) for part in (metrics[name].value, metrics[name].low, metrics[name].high)
        )
        for name, label in SHOWN.items()
        if metrics[name].low is not None
    }
    assert len(expected) == (4 if group_by else 5)  # the calibration error of groups has no interval
    assert trained == expected == intervals(run / "README.md")


def test_groups_that_are_not_known_give_no_interval(config, directories, images: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "photos.csv"
    inat_ft.split(images, out=manifest, group_by=r"(\d)\.png$", val_fraction=0.5, near=False)
    record, run = train(config(data__split=str(manifest)), directories)
    inat_ft.split(images, out=manifest, group_by=r"(\d)\.png$", val_fraction=0.3, near=False, force=True)
    found = validation(record, run).metrics
    assert found["accuracy"].value == pytest.approx(record.val_accuracy)
    assert {each.low for each in found.values()} == {None}


def test_an_evaluation_adds_the_test_set_and_keeps_a_card_that_was_edited(run, invoke) -> None:
    directory = run[1]
    assert invoke("eval", directory).code == 0
    card = directory / "README.md"
    splits = [each["dataset"]["split"] for each in header(card)["model-index"][0]["results"]]
    assert splits == ["validation", "test"] and (directory / "confusion-test.png").exists()
    assert "has not been evaluated" not in card.read_text()
    card.write_text(card.read_text().replace("An image classifier", "My classifier"))
    assert invoke("eval", directory).code == 0
    assert "My classifier" in card.read_text()


def test_resuming_a_finished_run_writes_the_files_that_a_killed_process_left_out(run, config, directories) -> None:
    record, directory = run
    names = ("README.md", "curves.png", "confusion-val.png")
    wanted = {name: (directory / name).read_bytes() for name in names}
    for name in names:
        (directory / name).unlink()
    assert train(config(), directories, resume=directory) == (record, directory)
    assert {name: (directory / name).read_bytes() for name in names} == wanted
    (directory / "README.md").write_text("edited")
    (directory / "curves.png").unlink()
    train(config(), directories, resume=directory)
    assert (directory / "README.md").read_text() == "edited" and not (directory / "curves.png").exists()


def test_a_trial_of_a_sweep_and_a_run_without_files_leave_none(config, directories, manifest_file: Path) -> None:
    settings = {"data.split": str(manifest_file), "model.backbone": "cnn", "data.image_size": 32, "optim.epochs": 1}
    objective = TrainingObjective("val_accuracy", directories.cache, lambda config: TrainCallbacks())
    objective(TrialJob("trial", directories.runs, [*settings.items()]))
    train(config(model__backbone="cnn", optim__epochs=1, name="without"), directories)
    for name in ("trial", "without"):
        assert read_record(directories.runs / name)[0].val_accuracy is not None
        assert not any((directories.runs / name / file).exists() for file in FILES)


def test_the_files_need_neither_matplotlib_nor_scipy_stats(run) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom inat_ft.records import read_record\n"
        "from inat_ft_run_files.tracker import RunFiles\n"
        f"directory = Path({str(run[1])!r})\n(directory / 'README.md').unlink()\n"
        "tracker = RunFiles()\ntracker.start(None, 'mine', directory, [])\ntracker.finish(read_record(directory)[0])\n"
        "assert (directory / 'README.md').exists()\n"
        "print([name for name in ('matplotlib', 'scipy.stats', 'sklearn', 'torch') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def results(classes: tuple[str, ...], table: list[list[int]]) -> Results:
    return Results("val", int(np.sum(table)), classes, {}, np.array(table))


def test_the_cells_of_the_matrix_have_the_color_of_their_share(tmp_path: Path) -> None:
    file = write_confusion(results(("cat", "dog"), [[3, 1], [0, 9]]), tmp_path / "confusion.png")
    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    dark = (pixels == (8, 48, 107)).all(-1)  # a share of 1, drawn once in each panel
    columns = np.flatnonzero(dark.any(0))
    assert 2 * 40 <= len(columns) <= 2 * 44 and (columns < pixels.shape[1] / 2).sum() == len(columns) / 2


@pytest.mark.parametrize("number", [1, 2, 40, 300, 2500])
def test_any_number_of_classes_can_be_drawn(tmp_path: Path, number: int) -> None:
    names = [f"a class with a long name {n} " * 3 for n in range(number)]
    draw_confusion(tmp_path / "matrix.png", names, np.eye(number, dtype=np.int64), "test")
    with Image.open(tmp_path / "matrix.png") as image:
        assert max(image.size) < 3200


def test_long_names_keep_the_end_that_tells_them_apart() -> None:
    names = [f"Animalia_Chordata_Mammalia_Carnivora_Canidae_Vulpes_{species}" for species in ("vulpes", "lagopus")]
    fitted = [_fitted(name, 13) for name in names]
    assert all(name.startswith("Animalia") and "…" in name for name in fitted)
    assert fitted[0].endswith("_vulpes") and fitted[1].endswith("_lagopus")
    assert _fitted("cat", 13) == "cat"


def test_names_in_other_scripts_are_drawn_with_fonts_that_have_them(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no installed font") if not _has_chinese() else _nothing():
        write_confusion(results(("猫", "狗"), [[1, 0], [0, 1]]), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").exists()


def _has_chinese() -> bool:
    from inat_ft_figures import figures
    from matplotlib import font_manager

    fonts = [entry.fname for entry in font_manager.fontManager.ttflist]
    return bool(figures._warned) or any("猫" in figures._characters(font) for font in fonts)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_curves_leave_out_losses_that_are_not_finite(tmp_path: Path) -> None:
    history = [Epoch(epoch=1, train_loss=0.5, val_loss=None), Epoch(epoch=2, train_loss=0.4, val_loss=0.6)]
    write_curves(history, tmp_path / "curves.png")
    write_curves([Epoch(epoch=1)], tmp_path / "none.png")
    with Image.open(tmp_path / "curves.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    assert (0xD5, 0x5E, 0x00) in colors and (0x00, 0x72, 0xB2) in colors


def test_names_cannot_break_the_card(tmp_path: Path) -> None:
    record = RunRecord(name="a`b|c", classes=["x`\u202e|y", "z"], config={"model": {"backbone": "cnn"}})
    assert write_card(record, [results(("x`|y", "z"), [[1, 1], [0, 2]])], tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert header(tmp_path / "README.md")["model-index"][0]["name"] == "a`b|c"
    assert "# a\\`b\\|c" in text and "\u202e" not in text
    (tmp_path / "README.md").write_text("mine")
    assert not write_card(record, [], tmp_path / "README.md") and (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(("hits", "number"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 40), (20, 40), (900, 1000)])
def test_intervals_are_those_of_scipy(hits: int, number: int) -> None:
    found = proportion(hits, number)
    expected = binomtest(hits, number).proportion_ci(0.95, method=found.method)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
