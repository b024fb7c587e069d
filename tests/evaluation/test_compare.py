import base64
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from inat_ft_report.report import _charts, write_report

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.evaluate import record_test_evaluation
from inat_ft.evaluation.predictions import Predictions, read_predictions, write_predictions
from inat_ft.records import RunRecord, read_record

NUMBER = 400


def record(folder: Path, name: str, right: np.ndarray | None = None, *, order=None, tag: str = "", **more) -> Path:
    """A record with predictions of two classes that are right where `right` says so."""
    folder = folder / name
    folder.mkdir(parents=True)
    content = {"name": name, **more}
    if right is not None:
        order = np.arange(len(right)) if order is None else order
        true = np.arange(len(right)) % 2
        predicted = np.where(right, true, 1 - true)
        hashes = np.array([f"{tag or 0}{n:063x}" for n in range(len(right))])
        paths = np.array([f"{n}.jpg" for n in range(len(right))])
        p = Predictions(("a", "b"), paths[order].tolist(), hashes[order].tolist(), true[order], predicted[order])
        write_predictions(folder / "p.csv", p)
        content |= {"predictions": {"test": "p.csv"}, "test_accuracy": float(right.mean()), "num_test": len(right)}
    (folder / "record.json").write_text(json.dumps(content))
    return folder


def right(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(NUMBER) < share * NUMBER


def test_a_significant_difference_has_its_size_in_points_and_images(tmp_path: Path) -> None:
    good = right(0.9)
    bad = good.copy()
    bad[np.flatnonzero(good)[:40]] = False
    bad[np.flatnonzero(~good)[:5]] = True
    found = compare([record(tmp_path, "A", bad), record(tmp_path, "B", good)])
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.n_first_only, pair.n_second_only) == ("B", "A", 40, 5)
    assert pair.is_significant and pair.difference.value == pytest.approx(35 / NUMBER)
    assert pair.difference.low < 35 / NUMBER < pair.difference.high
    assert found.summary.startswith("B is better than A by 8.75 points in accuracy (95% interval")
    assert "Only B is correct on 40 images, only A on 5" in found.summary


def test_classifiers_that_are_not_significantly_different(tmp_path: Path) -> None:
    found = compare([record(tmp_path, "A", right(0.80, 1)), record(tmp_path, "B", right(0.81, 2))])
    assert not found.pairs[0].is_significant
    assert found.summary.startswith("B and A are not significantly different on these test images")


def test_images_are_matched_by_content_not_by_order(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(5).permutation(NUMBER)
    a = record(tmp_path, "A", right(0.8))
    b = record(tmp_path, "B", right(0.8), order=shuffled)
    (pair,) = compare([a, b]).pairs
    assert (pair.n_first_only, pair.n_second_only, pair.agreement) == (0, 0, 1.0)


def test_different_images_are_not_ranked(tmp_path: Path) -> None:
    found = compare([record(tmp_path, "A", right(0.5)), record(tmp_path, "B", right(0.9), tag="f")])
    assert not found.pairs[0].is_significant and found.pairs[0].p is None
    assert "tested on different images (0 in common)" in found.summary and "better" not in found.summary


def test_other_classes_or_labels_are_not_ranked(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.5))
    b = record(tmp_path, "B", right(0.9))
    file = b / "p.csv"
    file.write_text(file.read_text().replace(",a,", ",zebra,"))
    assert "different classes" in compare([a, b]).summary
    lines = (a / "p.csv").read_text().splitlines()
    swapped = [
        lines[0],
        *(line.replace(",a,", ",x,", 1).replace(",b,", ",a,", 1).replace(",x,", ",b,", 1) for line in lines[1:]),
    ]
    c = record(tmp_path, "C", right(0.5))
    (c / "p.csv").write_text("\n".join(swapped) + "\n")
    assert "different labels" in compare([a, c]).summary


def test_a_minimal_foreign_record_is_accepted_with_its_limits(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    (tmp_path / "b.json").write_text('{"name": "B", "test_accuracy": 0.8}')
    found = compare([a, tmp_path / "b.json"])
    assert "cannot be checked" in found.summary and found.pairs[0].difference is None
    (tmp_path / "c.json").write_text('{"name": "C", "test_accuracy": 0.5, "num_test": 2000, "epochs": "five"}')
    found = compare([a, tmp_path / "c.json"])
    assert found.pairs[0].difference.method.startswith("unpaired") and not found.pairs[0].is_significant
    assert "which excludes 0" in found.summary and "better" not in found.summary
    assert any("neither predictions nor a training history" in info for info in found.remarks)


def test_several_are_corrected_and_the_best_is_compared_with_each(tmp_path: Path) -> None:
    paths = [
        record(tmp_path, name, right(share, seed))
        for seed, (name, share) in enumerate((("A", 0.9), ("B", 0.5), ("C", 0.89)))
    ]
    found = compare(paths)
    assert [candidate.name for candidate in found.candidates] == ["A", "C", "B"]
    assert all(pair.p_holm >= pair.p for pair in found.pairs)
    assert found.summary.startswith(
        "A has the best accuracy. It is better than B. It is not significantly different from C (p = 0."
    )
    assert [candidate.name for candidate in compare([tmp_path]).candidates] == ["A", "C", "B"]


def test_equivalence_within_a_margin(tmp_path: Path) -> None:
    base = right(0.8)
    other = base.copy()
    other[np.flatnonzero(base)[:2]] = False
    paths = [record(tmp_path, "A", base), record(tmp_path, "B", other)]
    assert "equivalent within 3.00 points" in compare(paths, margin=0.03).summary
    assert compare(paths, margin=0.001).pairs[0].equivalent is False


def test_validation_accuracy_decides_nothing_and_a_copied_pair_is_noticed(tmp_path: Path) -> None:
    equivalent = {"val_accuracy": 0.8109, "test_accuracy": 0.8075}
    for name in ("A", "B"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **equivalent}))
    (tmp_path / "V.json").write_text('{"name": "V", "val_accuracy": 0.99}')
    found = compare([tmp_path / "A.json", tmp_path / "B.json"])
    assert any("the same validation and test accuracy as" in info for info in found.remarks)
    found = compare([tmp_path / "A.json", tmp_path / "V.json"])
    assert found.candidates[-1].name == "V"
    assert found.summary == "No conclusion: the accuracy of V is unknown."
    assert any("V has no test_accuracy" in text and "inat-ft record new" in text for text in found.remarks)


def test_a_claim_that_its_own_predictions_contradict_is_noticed(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    raw = json.loads((b / "record.json").read_text())
    (b / "record.json").write_text(json.dumps({**raw, "test_accuracy": 0.99}))
    found = compare([a, b])
    assert found.candidates[0].name == "A"
    assert any("reports an accuracy of 0.9900, but its predictions give 0.5000" in info for info in found.remarks)


def test_seeds_of_one_configuration_count_as_one(tmp_path: Path) -> None:
    for seed in range(3):
        record(tmp_path / "runs", f"a{seed}", right(0.9, seed), config={"x": 1, "seed": seed}, seed=seed)
        record(tmp_path / "runs", f"b{seed}", right(0.6, seed + 10), config={"x": 2, "seed": seed}, seed=seed)
    found = compare([tmp_path / "runs"], group=True)
    assert [len(candidate.records) for candidate in found.candidates] == [3, 3]
    assert found.candidates[0].std is not None and found.pairs[0].is_significant
    assert found.pairs[0].difference.method == "seeds by side and images (Banerjee)"


def test_a_group_takes_each_seed_once_and_names_what_it_excludes(tmp_path: Path) -> None:
    for name, seed in (("a0", 0), ("a1", 1), ("again", 0)):
        record(tmp_path / "runs", name, right(0.9, seed), config={"x": 1, "seed": seed}, seed=seed)
    record(tmp_path / "runs", "unseen", config={"x": 1, "seed": 7}, seed=7, val_accuracy=0.9)
    for name in ("f1", "f2"):
        record(tmp_path / "runs", name, right(0.6, 5))  # of another code base: nothing says that only the seed differs
    found = compare([tmp_path / "runs"], group=True)
    assert sorted(len(candidate.records) for candidate in found.candidates) == [1, 1, 2]
    assert any("excludes again, which has the same seed as a0" in info for info in found.remarks)
    assert any("excludes unseen, which has no predictions" in info for info in found.remarks)


def test_a_claim_without_predictions_neither_wins_nor_hides_the_rest(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    for name, more in (("wild", {"num_test": 2000}), ("bare", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, "test_accuracy": 0.999, **more}))
    found = compare([a, b, tmp_path / "wild.json", tmp_path / "bare.json"])
    assert found.candidates[0].score.value == 0.999 and found.reference == "A"
    assert "A has the best accuracy of those that can be checked. It is better than B." in found.summary
    assert "cannot be compared with wild and bare, which have no predictions" in found.summary
    assert "better" not in compare([a, tmp_path / "wild.json"]).summary
    claims = [{"name": name, "test_accuracy": 0.5, "num_test": 9, "classes": [name, "x"]} for name in ("c", "d")]
    for claim in claims:
        (tmp_path / f"{claim['name']}.json").write_text(json.dumps(claim))
    found = compare([tmp_path / "c.json", tmp_path / "d.json"])
    assert "they have different classes (c, d)" in found.summary
    assert any("which no number of 9 images gives" in info for info in found.remarks)


def test_a_claim_in_the_records_metrics_does_not_outrank_the_predictions(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    raw = json.loads((b / "record.json").read_text())
    test = {"subset": "test", "num_images": NUMBER, "fingerprint": "f", "metrics": {"accuracy": {"value": 0.999}}}
    (b / "record.json").write_text(json.dumps({**raw, "test": test}))
    found = compare([a, b])
    assert found.summary.startswith("A is better than B by 40.00 points")
    assert any("reports an accuracy of 0.9990" in info for info in found.remarks)


def test_the_notation_of_paths_does_not_matter(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    for folder, change in ((a, lambda path: f"/data/test/{path}"), (b, lambda path: f"C:\\test\\{path}")):
        lines = (folder / "p.csv").read_text().splitlines()
        rows = [line.split(",") for line in lines[1:]]
        text = [lines[0], *(",".join([change(f"c{n % 3}/{row[0]}"), *row[1:3], ""]) for n, row in enumerate(rows))]
        (folder / "p.csv").write_text("\n".join(text).replace("c1/", "c1\\" if folder is b else "c1/") + "\n")
    assert compare([a, b]).pairs[0].n_first_only == 160


def test_a_lower_loss_is_better_and_its_interval_reads_upwards(tmp_path: Path) -> None:
    folders = []
    for name, sure in (("A", 0.6), ("B", 0.9)):
        folder = record(tmp_path, name, right(0.9))
        lines = (folder / "p.csv").read_text().splitlines()
        rows = [line.split(",") for line in lines[1:]]
        text = [f"{line},{sure if row[2] == 'a' else 1 - sure:.1f},{sure if row[2] == 'b' else 1 - sure:.1f}"
                for line, row in zip(lines[1:], rows, strict=True)]  # fmt: skip
        (folder / "p.csv").write_text("\n".join([lines[0] + ",p_a,p_b", *text]) + "\n")
        folders.append(folder)
    found = compare(folders, metric="log_loss")
    low, high = re.search(
        r"B is better than A by 0\.\d+ nats in log loss \(95% interval (\S+) to (\S+),", found.summary
    ).groups()
    assert 0 < float(low) < float(high)
    assert found.improvement(*folders) > 0 > found.improvement(*folders[::-1])


def test_a_margin_is_answered_for_several_and_for_what_differs(tmp_path: Path) -> None:
    base = right(0.8)
    near, far = base.copy(), base.copy()
    near[np.flatnonzero(base)[:2]] = False
    far[np.flatnonzero(base)[:12]] = False
    paths = [record(tmp_path, name, which) for name, which in (("A", base), ("B", near), ("C", far))]
    assert "equivalent to B within 2.00 points" in compare(paths, margin=0.02).summary
    both = compare([paths[0], paths[2]], margin=0.1)
    assert "A is better than C" in both.summary and "within the margin of 10.00 points" in both.summary


@pytest.mark.slow
def test_of_several_equal_ones_the_luckiest_is_seldom_called_better(tmp_path: Path) -> None:
    rng, false = np.random.default_rng(0), 0
    for trial in range(40):
        folder = tmp_path / str(trial)
        shared = rng.random(NUMBER) < 0.6
        for name in "abcdef":
            record(folder, name, np.where(rng.random(NUMBER) < 0.4, rng.random(NUMBER) < 0.6, shared))
        false += any(pair.is_significant for pair in compare([folder]).pairs)
    assert false <= 5  # with a correction for the five pairs alone it would be 4 in expectation


def test_an_unfinished_training_and_a_misspelled_key_are_reported(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    (tmp_path / "going").mkdir()
    (tmp_path / "going" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(UsageError, match="is not finished") as caught:
        compare([a, tmp_path / "going"])
    assert "--resume" in caught.value.hint
    (tmp_path / "b.json").write_text('{"name": "B", "test_acuracy": 0.8}')
    with pytest.raises(RecordError, match="unknown key 'test_acuracy': did you mean 'test_accuracy'"):
        compare([a, tmp_path / "b.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "A", "test_accuracy": 1.2}', "test_accuracy: 1.2 is more than the maximum, 1"),
        ('{"name": "A", "test_accuracy": "high"}', "test_accuracy: 'high' is not a number"),
        ('{"name": "A", "test_accuracy": "0.8"}', "test_accuracy: '0.8' is not a number"),
        ('{"name": "A", "test_accuracy": true}', "test_accuracy: True is not a number"),
        ('{"name": "A\\u001b[31m", "test_accuracy": 0.5}', "name: "),
        ('{"test_accuracy": 0.5}', "name: required, but missing"),
        ('{"name": "A", "schema_version": 7}', "schema_version 7 is unknown"),
        ("[1]", "list"),
        ("{", "as JSON"),
        ("[" * 200_000, "as JSON"),
        ('{"name": "A", "test_accuracy": ' + "9" * 5000 + "}", "as JSON"),
        ('{"name": "A", "test_accuracy": 0.5, "num_test": ' + "9" * 24 + "}", "num_test: "),
        ('{"name": "A", "test_accuracy": 0.5, "predictions": {"test": "a\\u0000b"}}', "predictions"),
    ],
)
def test_a_wrong_record_is_refused_with_key_and_value(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_record(tmp_path / "r.json")


def test_a_pipe_is_refused_and_a_damaged_ledger_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_record, read_predictions):
        with pytest.raises(RecordError, match="is not a regular file"):
            read(tmp_path / "pipe")
    (tmp_path / "m.csv.looks.jsonl").write_bytes(b"\xff\xfe\x00\n" * 9)
    counts = [record_test_evaluation(tmp_path / "m.csv", test, "run", 0.5) for test in ("x7", "x7", "y8")]
    assert counts == [1, 2, 1]


def test_equal_names_get_the_part_of_their_paths_that_differs(tmp_path: Path) -> None:
    places = [tmp_path / place for place in ("one/run", "two/run", "two/last")]
    for number, place in enumerate(places):
        place.parent.mkdir(exist_ok=True)
        record(tmp_path / str(number), "A", right(0.8, number)).rename(place)
    found = compare([*places, record(tmp_path, "B", right(0.9))])
    assert {each.name for each in found.candidates} == {"A (one/run)", "A (two/run)", "A (two/last)", "B"}
    assert len(found.pairs) == 3
    files = [tmp_path / "x.json", tmp_path / "y.json"]
    for file in files:
        file.write_text('{"name": "A", "test_accuracy": 0.8, "num_test": 100}', encoding="utf-8")
    assert {each.name for each in compare(files).candidates} == {"A (x.json)", "A (y.json)"}


def test_wrong_usage(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    for paths, message in (
        ([a], "two records"),
        ([a, a], "passed twice"),
        ([a, a / "record.json"], "passed twice"),
        ([a, tmp_path / "none.json"], "run or record not found"),
    ):
        with pytest.raises(UsageError, match=message):
            compare(paths)
    with pytest.raises(UsageError, match="unknown metric"):
        compare([a, a], metric="beauty")


def test_the_report_holds_the_answer_escapes_names_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    a = record(tmp_path, "A", right(0.9))
    b = record(tmp_path, "B", right(0.5))
    raw = json.loads((b / "record.json").read_text())
    (b / "record.json").write_text(json.dumps({**raw, "name": evil}))
    found = compare([a, b])
    write_report(found, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert evil not in page and "&lt;script&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert page.index("A is better than") < page.index("Evidence") < page.index("How to reproduce it")
    assert page.count("<img") == page.count('alt="')
    assert "&lt;/script&gt; minus A." in page  # the sign of the other differences
    assert page.count('class="columns"') == 3 and "images/s" not in page  # a column without values


def test_dollars_in_names_and_long_times_draw(tmp_path: Path) -> None:
    more = {"history": [{"epoch": n, "val_accuracy": n / 10} for n in (1, 2)]}
    names = ("from $5_{ to $6", "$x")
    paths = [record(tmp_path, f"r{n}", right(0.9 - n / 9, n), **more) for n in range(2)]
    for path, name, seconds in zip(paths, names, (8.5, 5000.0), strict=True):
        raw = json.loads((path / "record.json").read_text())
        (path / "record.json").write_text(json.dumps({**raw, "name": name, "seconds": {"total": seconds}}))
    write_report(compare(paths), tmp_path / "report.html")
    charts = [
        base64.b64decode(text).decode()
        for text in re.findall(r"svg\+xml;base64,([^\"]+)", (tmp_path / "report.html").read_text())
    ]
    assert any("from $5_{ to $6" in chart for chart in charts)
    assert not any("mathdefault" in chart for chart in charts)


def test_each_classifier_has_one_style_in_all_charts_and_no_label_in_the_plot(tmp_path: Path) -> None:
    history = [{"epoch": n, "val_accuracy": n / 10} for n in (1, 2)]
    paths = [record(tmp_path, "without", right(0.9), seconds={"total": 10.0})]
    paths += [record(tmp_path, name, right(0.8, 1), history=history, seconds={"total": 10.0}) for name in ("p", "q")]
    found = compare(paths)
    charts = _charts(found, None)
    drawn = {
        name: {line.get_label(): line for line in figure.axes[0].get_lines()} for name, (figure, _) in charts.items()
    }
    assert len({drawn["cost"][name].get_marker() for name in ("without", "p", "q")}) == 3
    for name in ("p", "q"):
        assert (
            drawn["cost"][name].get_color() == drawn["curves"][name].get_color() != drawn["cost"]["without"].get_color()
        )
    assert not charts["cost"][0].axes[0].texts  # names of close points would overlap


@pytest.mark.parametrize("columns", [80, 120])
def test_settings_of_several_classifiers_are_not_broken_in_a_narrow_terminal(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    names = ("efficientnet_lite0", "convnext_base", "resnet50")
    configs = [{"model": {"backbone": name}, "strategy": {"unfreeze_from": None}} for name in names]
    paths = [
        record(tmp_path, f"run-of-{name}", right(0.9, n), config=c)
        for n, (name, c) in enumerate(zip(names, configs, strict=True))
    ]
    monkeypatch.setenv("COLUMNS", str(columns))
    ran = cli("compare", *paths)
    assert ran.code == 0, ran.err
    line = next(line for line in ran.out.splitlines() if line.startswith(" model.backbone"))
    assert line.count(",") == (2 if columns == 80 else 0) and all(name in line for name in names)


def test_the_command_line(cli, tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    ran = cli("compare", a, b / "record.json", "--json", "--html", tmp_path / "r.html")
    assert ran.code == 0 and ran.json["entries"][0]["name"] == "A" and (tmp_path / "r.html").exists()
    assert cli("compare", a, b, "--fail-under", "0.01").code == 1
    assert cli("compare", b, a, "--fail-under", "0.3").code == 0
    assert cli("compare", a).code == 2


def test_an_unknown_key_of_a_foreign_record_is_kept(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"name": "A", "test_accuracy": 0.5, "framework": "keras"}')
    found, _ = read_record(tmp_path / "r.json")
    assert isinstance(found, RunRecord) and found.model_dump()["framework"] == "keras"
