"""`inat-ft runs`: what it lists, selects, shows, deletes and draws."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from inat_ft_runs.charts import Series, line_chart

from inat_ft.config import RunConfig
from inat_ft.locks import FileLock
from inat_ft.records import Epoch, Evaluation, MetricValue, Parameters, RunRecord, write_record, write_text
from inat_ft.settings import dump_config, load_config


def epochs(*accuracies: float) -> list[Epoch]:
    return [
        Epoch(epoch=n, train_loss=1 / n, train_accuracy=a, val_loss=1.2 / n, val_accuracy=a, lr=1e-3, seconds=1.5)
        for n, a in enumerate(accuracies, 1)
    ]


def configured(**settings: object) -> RunConfig:
    return load_config(None, [(key.replace("__", "."), value) for key, value in settings.items()])


def make_run(name: str, accuracy: float, day: int, test: float | None = None, **settings: object) -> Path:
    directory, config = Path("runs") / name, configured(**settings)
    history = epochs(accuracy / 2, accuracy)
    metric = None if test is None else MetricValue(value=test, low=test - 0.05, high=test + 0.05, method="wilson")
    record = RunRecord(
        name=name,
        created=f"2026-01-{day:02d}T10:00:00+00:00",
        val_accuracy=accuracy,
        test_accuracy=test,
        num_test=test and 100,
        test=metric and Evaluation(subset="test", num_images=100, fingerprint="", metrics={"accuracy": metric}),
        classes=["a", "b"],
        config=config.model_dump(mode="json"),
        history=history,
        best_epoch=2,
        parameters=Parameters(total=100, trained=10),
        seconds={"total": 3.0},
    )
    write_text(directory / "config.yaml", dump_config(config))
    write_record(record, directory / "record.json")
    return directory


@pytest.fixture
def runs() -> Path:
    make_run("first", 0.6, 1, test=0.55, strategy__name="head", optim__lr=1e-4)
    make_run("second", 0.9, 2, strategy__name="full", optim__lr=1e-2)
    make_run("third", 0.7, 3, model__backbone="resnet18", optim__lr=1e-3)
    unfinished = Path("runs/unfinished")
    write_text(unfinished / "config.yaml", dump_config(configured(model__backbone="cnn")))
    lines = [epoch.model_dump_json() for epoch in epochs(0.3, 0.5, 0.4)]
    write_text(unfinished / "metrics.jsonl", "\n".join([*lines, '{"epoch": 4, "train_']))
    write_text(Path("runs/damaged/record.json"), '{"name": "damaged", "val_accuracy": 4}')
    write_text(Path("runs/notes/readme.txt"), "not a run")
    return Path("runs")


def names(ran) -> list[str]:
    assert ran.code == 0, ran.err
    return [run["name"] for run in ran.json]


def test_the_list_has_every_run_with_its_state(invoke, runs: Path) -> None:
    found = {run["name"]: run for run in invoke("runs", "--json").json}
    assert {name: run["state"] for name, run in found.items()} == {
        "first": "complete",
        "second": "complete",
        "third": "complete",
        "unfinished": "interrupted",
        "damaged": "damaged",
    }
    assert found["unfinished"]["val_accuracy"] == 0.5 and found["unfinished"]["epochs"] == 3
    assert found["first"]["test_accuracy"] == 0.55 and found["first"]["seconds"] == 3.0
    assert "val_accuracy" in found["damaged"]["problem"]
    complete = names(invoke("runs", "--json", "--where", "state=complete"))
    assert complete == ["third", "second", "first"]  # the newest first
    (runs / "unfinished" / "crash.txt").write_text("Traceback")
    with FileLock(runs / "unfinished" / ".lock"):
        assert invoke("runs", "--json", "--where", "name=unfinished").json[0]["state"] == "running"
    assert invoke("runs", "--json", "--where", "name=unfinished").json[0]["state"] == "failed"


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["--where", "mode=head", "--where", "state=complete"], {"first", "third"}),
        (["--mode", "full", "--where", "state=complete"], {"second"}),
        (["--backbone", "resnet*", "--where", "lr>=0.001"], {"second", "third"}),
        (["--where", "backbone!=resnet50", "--where", "state=complete"], {"third"}),
        (["--where", "val_accuracy > 0.65"], {"second", "third"}),
        (["--where", "optim.lr=1e-4", "--where", "state!=interrupted"], {"first"}),
        (["--where", "test_accuracy=none", "--where", "state=complete"], {"second", "third"}),
        (["--where", "created<2026-01-03"], {"first", "second"}),
    ],
)
def test_conditions_select_runs(invoke, runs: Path, conditions: list[str], expected: set[str]) -> None:
    assert set(names(invoke("runs", "list", "--json", *conditions))) == expected


def test_sorting_puts_the_largest_number_first_and_runs_without_it_last(invoke, runs: Path) -> None:
    assert names(invoke("runs", "--json", "--sort", "val_accuracy"))[:4] == ["second", "third", "first", "unfinished"]
    assert names(invoke("runs", "--json", "--sort", "val_accuracy", "--limit", 2)) == ["second", "third"]
    ascending = names(invoke("runs", "--json", "--sort", "lr", "--reverse", "--where", "state=complete"))
    assert ascending == ["first", "third", "second"]
    assert names(invoke("runs", "--json", "--sort", "test_accuracy"))[0] == "first"
    assert names(invoke("runs", "--json", "--sort", "name"))[:2] == ["damaged", "first"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--where", "mdoe=head"], "unknown column or setting 'mdoe': did you mean 'mode'?"),
        (["--where", "head"], "--where 'head' is not a condition"),
        (["--where", "lr>high"], "'high' is not a number"),
        (["--sort", "val_acuracy"], "did you mean 'val_accuracy'?"),
        (["--runs-dir", "nowhere"], "no such folder: nowhere"),
        (["--mode", "head", "show", "first"], "unexpected extra argument(s) (show first)"),
        (["show", "frist"], "no such run: frist: did you mean 'first'?"),
    ],
)
def test_wrong_words_are_refused_in_one_sentence(invoke, runs: Path, words: list[str], message: str) -> None:
    ran = invoke("runs", *words)
    assert ran.code == 2 and message in ran.err and not ran.out


@pytest.mark.parametrize("columns", [80, 60])
def test_the_table_fits_the_terminal(invoke, runs: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    make_run("efficientnet_v2_s-discriminative-lr-3e-4-mixup-0.2-seed-17", 0.8, 4, model__backbone="efficientnet_v2_s")
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = invoke("runs")
    assert ran.code == 0 and max(map(len, ran.out.splitlines())) <= columns
    assert "val acc" in ran.out and "0.9000" in ran.out and "0.5500" in ran.out
    assert "columns omitted because the terminal is narrow" in ran.err and "created" in ran.err
    monkeypatch.setenv("COLUMNS", "200")
    assert "2026-01-02 10:00" in invoke("runs").out


def test_show_has_results_settings_history_and_files(invoke, runs: Path) -> None:
    ran = invoke("runs", "show", "first")
    for text in ("validation accuracy 0.6000", "accuracy 0.5500 on 100 images", "0.5000   0.6000", "record.json"):
        assert text in ran.out, ran.out
    shown = invoke("runs", "show", runs / "second", "--json").json
    assert shown["settings"]["optim.lr"] == 0.01 and shown["settings"]["strategy.name"] == "full"
    assert "optim.epochs" not in shown["settings"]
    assert len(shown["history"]) == 2 and shown["record"]["val_accuracy"] == 0.9
    assert shown["files"]["record.json"] == (runs / "second" / "record.json").stat().st_size
    assert shown["next"] == "inat-ft eval runs/second"
    assert invoke("runs", "show", "unfinished", "--json").json["next"] == "inat-ft train --resume runs/unfinished"
    assert invoke("runs", "show", "damaged", "--json").json["record"] is None


def test_delete_asks_and_removes_only_what_was_named(invoke, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for answer, code in (("n\n", 1), ("", 2)):
        monkeypatch.setattr("sys.stdin", __import__("io").StringIO(answer))
        ran = invoke("runs", "delete", "first")
        assert ran.code == code and "nothing was deleted" in ran.err and (runs / "first" / "record.json").exists()
    monkeypatch.setattr("sys.stdin", __import__("io").StringIO("y\n"))
    assert invoke("runs", "delete", "first").code == 0
    ran = invoke("runs", "delete", "second", runs / "damaged", "--yes", "--json")
    assert sorted(ran.json["deleted"]) == ["runs/damaged", "runs/second"] and ran.json["bytes"] > 0
    assert sorted(each.name for each in runs.iterdir()) == ["notes", "third", "unfinished"]


def test_delete_refuses_other_folders_and_running_runs_and_then_deletes_nothing(invoke, runs: Path) -> None:
    elsewhere = Path("elsewhere")
    (runs / "first").rename(elsewhere)
    (runs / "link").symlink_to(elsewhere.resolve())
    (runs / "third").rename(runs / "notes" / "third")
    for other in ("elsewhere", "link", "notes/third", "../elsewhere", "notes", ".", ".."):
        ran = invoke("runs", "delete", "second", other, "--yes")
        assert ran.code == 2, other
        assert "can be deleted" in ran.err or "no such run" in ran.err
    with FileLock(runs / "unfinished" / ".lock"):
        ran = invoke("runs", "delete", "second", "unfinished", "--yes")
        assert ran.code == 2 and "another process is training runs/unfinished" in ran.err
    kept = [elsewhere, runs / "second", runs / "notes" / "third"]
    assert all((each / "record.json").exists() for each in kept) and (runs / "unfinished" / "config.yaml").exists()


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [value for key in ("href", "src") if (value := given.get(key))]
        self.ids += [value for value in [given.get("id")] if value]


def test_the_page_has_every_run_with_its_curves_and_needs_no_network(invoke, runs: Path) -> None:
    ran = invoke("runs", "html", "--out", "pages/runs.html", "--where", "state!=damaged", "--json")
    assert ran.json == {"file": "pages/runs.html", "runs": ["second", "third", "first", "unfinished"]}
    text = Path("pages/runs.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and not re.search(r"https?://", text)
    for link in page.links:
        if link.startswith("#"):
            assert link[1:] in page.ids
        elif not link.startswith("data:"):
            assert (Path("pages") / link).is_dir()
    assert page.tags.count("svg") == 1 + 2 * 4 and "prefers-color-scheme: dark" in text
    assert "the highest validation accuracy is 0.9000 (second)" in text
    assert "Test accuracy 0.5500 (95% interval 0.5000 to 0.6000) on 100 images." in text


def test_a_page_without_runs_says_so(invoke) -> None:
    Path("runs").mkdir()
    assert invoke("runs", "html").code == 0 and "No runs." in Path("runs.html").read_text()
    assert invoke("runs").err == "no runs in runs match\n"


def test_a_chart_places_points_and_leaves_out_values_that_are_not_finite() -> None:
    svg = line_chart("<loss>", [Series("a & b", [(1, 0.0), (2, float("nan")), (3, 1.0)], "line-0")], 100, 100)
    root = ElementTree.fromstring(svg)
    (line,) = root.iter("polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x0 < x1 and y0 > y1 and min(x0, y1) >= 0 and max(x1, y0) <= 100
    assert root.get("aria-label") == "<loss>: a & b"
    texts = [text.text for text in root.iter("text")]
    assert {"0", "1", "3", "epoch"} <= set(texts)
    assert line_chart("loss", [Series("a", [(1, float("nan"))], "line-0")]) == ""


def test_json_of_a_run_without_a_finite_loss_is_valid(invoke) -> None:
    write_text(Path("runs/odd/config.yaml"), dump_config(configured()))
    write_text(Path("runs/odd/metrics.jsonl"), json.dumps({"epoch": 1, "val_loss": None, "val_accuracy": 0.1}))
    assert invoke("runs", "show", "odd", "--json").json["history"][0]["val_loss"] is None


@given(st.lists(st.floats(), min_size=1, max_size=5))
@example([1.2040152549743652e-14, 1.2e-14])
@example([0.0, 5e-324])
@example([1e308, -1e308])
@example([0.3333333432674408, 0.3333333432674409])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    svg = line_chart("loss", [Series("a", list(enumerate(values)), "line-0")])
    assert "nan" not in svg and "inf" not in svg
    assert bool(svg) == any(abs(value) < 1e300 for value in values)
