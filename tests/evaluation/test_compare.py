import json
from pathlib import Path

import numpy as np
import pytest

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.predictions import Predictions, write_predictions
from inat_ft.evaluation.report import write_report
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


def test_a_real_difference_is_called_one_with_its_size_in_points_and_images(tmp_path: Path) -> None:
    good = right(0.9)
    bad = good.copy()
    bad[np.flatnonzero(good)[:40]] = False
    bad[np.flatnonzero(~good)[:5]] = True
    found = compare([record(tmp_path, "A", bad), record(tmp_path, "B", good)])
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.only_first, pair.only_second) == ("B", "A", 40, 5)
    assert pair.is_real and pair.difference.value == pytest.approx(35 / NUMBER)
    assert pair.difference.low < 35 / NUMBER < pair.difference.high
    assert found.sentence.startswith("B is better than A: by 8.75 points (95 % interval")
    assert "B is right on 40 images where A is wrong, A on 5" in found.sentence


def test_what_cannot_be_told_apart_is_called_so(tmp_path: Path) -> None:
    found = compare([record(tmp_path, "A", right(0.80, 1)), record(tmp_path, "B", right(0.81, 2))])
    assert not found.pairs[0].is_real
    assert found.sentence.startswith("These test images cannot tell B and A apart")


def test_images_are_matched_by_content_not_by_order(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(5).permutation(NUMBER)
    a = record(tmp_path, "A", right(0.8))
    b = record(tmp_path, "B", right(0.8), order=shuffled)
    (pair,) = compare([a, b]).pairs
    assert (pair.only_first, pair.only_second, pair.agreement) == (0, 0, 1.0)


def test_different_images_are_not_ranked(tmp_path: Path) -> None:
    found = compare([record(tmp_path, "A", right(0.5)), record(tmp_path, "B", right(0.9), tag="f")])
    assert not found.pairs[0].is_real and found.pairs[0].p is None
    assert "tested on different images (0 in common)" in found.sentence and "better" not in found.sentence


def test_other_classes_or_labels_are_not_ranked(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.5))
    b = record(tmp_path, "B", right(0.9))
    file = b / "p.csv"
    file.write_text(file.read_text().replace(",a,", ",zebra,"))
    assert "different classes" in compare([a, b]).sentence
    lines = (a / "p.csv").read_text().splitlines()
    swapped = [
        lines[0],
        *(line.replace(",a,", ",x,", 1).replace(",b,", ",a,", 1).replace(",x,", ",b,", 1) for line in lines[1:]),
    ]
    c = record(tmp_path, "C", right(0.5))
    (c / "p.csv").write_text("\n".join(swapped) + "\n")
    assert "different labels" in compare([a, c]).sentence


def test_the_least_foreign_record_is_taken_and_its_limits_said(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    (tmp_path / "b.json").write_text('{"name": "B", "test_accuracy": 0.8}')
    found = compare([a, tmp_path / "b.json"])
    assert "cannot be checked" in found.sentence and found.pairs[0].difference is None
    (tmp_path / "c.json").write_text('{"name": "C", "test_accuracy": 0.5, "num_test": 2000, "epochs": "five"}')
    found = compare([a, tmp_path / "c.json"])
    assert found.pairs[0].difference.method.startswith("unpaired") and found.pairs[0].is_real
    assert "unpaired intervals" in found.sentence
    assert any("neither predictions nor learning curves" in remark for remark in found.remarks)


def test_several_are_corrected_and_the_best_is_held_against_each(tmp_path: Path) -> None:
    paths = [
        record(tmp_path, name, right(share, seed))
        for seed, (name, share) in enumerate((("A", 0.9), ("B", 0.5), ("C", 0.89)))
    ]
    found = compare(paths)
    assert [entry.name for entry in found.entries] == ["A", "C", "B"]
    assert all(pair.p_holm >= pair.p for pair in found.pairs)
    assert found.sentence.startswith("A has the best accuracy; it is better than B, and cannot be told apart from C")
    assert [entry.name for entry in compare([tmp_path]).entries] == ["A", "C", "B"]


def test_equivalence_within_a_margin(tmp_path: Path) -> None:
    base = right(0.8)
    other = base.copy()
    other[np.flatnonzero(base)[:2]] = False
    paths = [record(tmp_path, "A", base), record(tmp_path, "B", other)]
    assert "equivalent within 3.00 points" in compare(paths, margin=0.03).sentence
    assert compare(paths, margin=0.001).pairs[0].same is False


def test_validation_accuracy_decides_nothing_and_a_copied_pair_is_noticed(tmp_path: Path) -> None:
    same = {"val_accuracy": 0.8109, "test_accuracy": 0.8075}
    for name in ("A", "B"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name, **same}))
    (tmp_path / "V.json").write_text('{"name": "V", "val_accuracy": 0.99}')
    found = compare([tmp_path / "A.json", tmp_path / "B.json"])
    assert any("the very same validation and test accuracy" in remark for remark in found.remarks)
    found = compare([tmp_path / "A.json", tmp_path / "V.json"])
    assert found.entries[-1].name == "V" and "nothing can be said" in found.sentence


def test_a_claim_that_its_own_predictions_contradict_is_noticed(tmp_path: Path) -> None:
    a, b = record(tmp_path, "A", right(0.9)), record(tmp_path, "B", right(0.5))
    raw = json.loads((b / "record.json").read_text())
    (b / "record.json").write_text(json.dumps({**raw, "test_accuracy": 0.99}))
    found = compare([a, b])
    assert found.entries[0].name == "A"
    assert any("claims an accuracy of 0.9900, but its predictions come to 0.5000" in remark for remark in found.remarks)


def test_seeds_of_one_configuration_count_as_one(tmp_path: Path) -> None:
    for seed in range(3):
        record(tmp_path / "runs", f"a{seed}", right(0.9, seed), config={"x": 1, "seed": seed}, seed=seed)
        record(tmp_path / "runs", f"b{seed}", right(0.6, seed + 10), config={"x": 2, "seed": seed}, seed=seed)
    found = compare([tmp_path / "runs"], group=True)
    assert [len(entry.records) for entry in found.entries] == [3, 3]
    assert found.entries[0].deviation is not None and found.pairs[0].is_real
    assert found.pairs[0].difference.method == "bootstrap over seeds and images"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "A", "test_accuracy": 1.2}', r"test_accuracy: input should be less than or equal to 1 \(got 1.2\)"),
        ('{"name": "A", "test_accuracy": "high"}', "test_accuracy: .*got 'high'"),
        ('{"test_accuracy": 0.5}', "name: field required"),
        ('{"name": "A", "schema_version": 7}', "schema_version 7 is unknown"),
        ("[1]", "holds a list"),
        ("{", "as JSON"),
    ],
)
def test_a_wrong_record_is_refused_with_key_and_value(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_record(tmp_path / "r.json")


def test_wrong_usage(tmp_path: Path) -> None:
    a = record(tmp_path, "A", right(0.9))
    for paths, message in (
        ([a], "two records"),
        ([a, a], "named twice"),
        ([a, tmp_path / "none.json"], "no such record"),
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
    assert page.index("A is better than") < page.index("The evidence") < page.index("How to repeat it")
    assert page.count("<img") == page.count('alt="')


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
