import json
from pathlib import Path

import pytest
from inat_ft_importers.history import to_number
from inat_ft_importers.huggingface import from_trainer_state
from inat_ft_importers.wandb import from_wandb

from inat_ft.errors import RecordError, UsageError
from inat_ft.evaluation.compare import compare
from inat_ft.evaluation.predictions import read_predictions
from inat_ft.records import read_record


def predictions(file: Path, wrong: int) -> Path:
    rows = [
        f"{n}.jpg,{t},{t if n >= wrong else ('dog' if t == 'cat' else 'cat')}"
        for n in range(200)
        for t in [("cat", "dog")[n % 2]]
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("path,true,predicted\n" + "\n".join(rows) + "\n")
    return file


def test_two_foreign_predictions_make_a_paired_test(cli, tmp_path: Path) -> None:
    for name, wrong in (("keras", 60), ("jax", 20)):
        predictions(tmp_path / name / "p.csv", wrong)
        ran = cli("record", "new", f"{name}/p.csv", "--name", name, "--out", f"{name}.json")
        assert ran.code == 0 and f"test accuracy {1 - wrong / 200:.4f}" in ran.out
    found = compare([Path("keras.json"), Path("jax.json")])
    assert (found.pairs[0].n_first_only, found.pairs[0].n_second_only) == (40, 0)
    assert found.summary.startswith("jax is better than keras")
    assert cli("record", "new", "jax/p.csv", "--name", "x", "--out", "jax.json").code == 2
    assert read_record(Path("jax.json"))[0].predictions == {"test": "jax/p.csv"}


def test_wandb_history_and_summary(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_text(
        '"Step","run-7 - epoch","run-7 - val_accuracy","run-7 - train_loss"\n0,1,0.5,2.0\n1,2,0.7,1.0\n2,3,0.6,0.9\n'
    )
    record = from_wandb(tmp_path / "h.csv", "A", run="run-7")
    with pytest.raises(UsageError, match="has no run 'run-8'") as caught:
        from_wandb(tmp_path / "h.csv", "A", run="run-8")
    assert caught.value.hint == "it has: run-7"
    assert [epoch.val_accuracy for epoch in record.history] == [0.5, 0.7, 0.6] and record.best_epoch == 2
    (tmp_path / "s.json").write_text(json.dumps({"epoch": 5, "val_acc": 0.8, "test_acc": 0.79, "_step": 5}))
    record = from_wandb(tmp_path / "s.json", "B")
    assert (record.test_accuracy, record.val_accuracy) == (0.79, 0.8)
    (tmp_path / "bad.json").write_text('{"val_accuracy": 80}')
    with pytest.raises(RecordError, match=r"val_accuracy: 80.* is more than the maximum"):
        from_wandb(tmp_path / "bad.json", "C")
    (tmp_path / "none.json").write_text('{"x": 1}')
    with pytest.raises(RecordError, match="neither epochs nor a test accuracy"):
        from_wandb(tmp_path / "none.json", "C")


def test_hugging_faces_trainer_state(tmp_path: Path) -> None:
    log = [
        {"epoch": 0.5, "loss": 2.0},
        {"epoch": 1.0, "loss": 1.5},
        {"epoch": 1.0, "eval_loss": 1.4, "eval_accuracy": 0.6},
        {"epoch": 2.0, "eval_loss": 1.2, "eval_accuracy": 0.7},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    record = from_trainer_state(tmp_path / "trainer_state.json", "hf")
    assert [(e.epoch, e.train_loss, e.val_accuracy) for e in record.history] == [(1, 1.5, 0.6), (2, None, 0.7)]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecordError, match="not a trainer_state"):
        from_trainer_state(tmp_path / "other.json", "hf")


def test_wandb_exports_of_several_runs_ask_which_one(tmp_path: Path) -> None:
    (tmp_path / "chart.csv").write_text(
        '"Step","sun-3 - val_accuracy","sun-3 - val_accuracy__MIN","moon-4 - val_accuracy"\n'
        '"0","0.3","0.3","0.6"\n"1","0.4","0.4",""\n'
    )
    with pytest.raises(UsageError, match="has 2 runs: moon-4, sun-3"):
        from_wandb(tmp_path / "chart.csv", "A")
    assert [epoch.val_accuracy for epoch in from_wandb(tmp_path / "chart.csv", "A", "sun-3").history] == [0.3, 0.4]
    (tmp_path / "table.csv").write_text("Name,State,epoch,test_accuracy\na,finished,5,0.36\nb,finished,5,0.81\n")
    with pytest.raises(UsageError, match="has 2 runs: a, b"):
        from_wandb(tmp_path / "table.csv", "A")
    assert from_wandb(tmp_path / "table.csv", "A", "a").test_accuracy == 0.36


def test_wandb_epochs_from_zero_and_steps(tmp_path: Path) -> None:
    (tmp_path / "zero.csv").write_text("_step,epoch,val_acc\n0,0,0.5\n1,1,0.6\n2,2,0.7\n")
    assert [(e.epoch, e.val_accuracy) for e in from_wandb(tmp_path / "zero.csv", "A").history] == [
        (1, 0.5),
        (2, 0.6),
        (3, 0.7),
    ]
    steps = [
        {"_step": n, "train/loss": 2 - n / 100, **({"val/accuracy": n / 100} if n % 20 == 19 else {})}
        for n in range(100)
    ]
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    record = from_wandb(tmp_path / "steps.json", "A")
    assert (len(record.history), record.best_epoch, record.val_accuracy) == (5, 5, 0.99)
    columns = {"epoch": {"0": 1, "1": 2}, "val_accuracy": {"0": 0.3, "1": 0.4}}
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    assert from_wandb(tmp_path / "columns.json", "A").best_epoch == 2


def test_an_evaluation_after_training_is_not_taken_for_an_epoch(tmp_path: Path) -> None:
    log = [
        {"epoch": 0, "eval_accuracy": 0.1},
        {"epoch": 1.0, "loss": 1.0},
        {"epoch": 1.0, "eval_accuracy": 0.80},
        {"epoch": 2.0, "loss": 0.6},
        {"epoch": 2.0, "eval_accuracy": 0.85},
        {"epoch": 3.0, "loss": 0.3},
        {"epoch": 3.0, "eval_accuracy": 0.70},
        {"epoch": 3.0, "train_loss": 0.63, "train_runtime": 12.0},
        {"epoch": 3.0, "eval_accuracy": 0.91},
        {"epoch": 3.0, "test_accuracy": 0.82},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    record = from_trainer_state(tmp_path / "trainer_state.json", "hf")
    assert [epoch.val_accuracy for epoch in record.history] == [0.80, 0.85, 0.70]
    assert (record.best_epoch, record.val_accuracy, record.test_accuracy) == (2, 0.85, 0.82)


def test_a_training_that_was_resumed_after_its_end_keeps_its_later_epochs(tmp_path: Path) -> None:
    log = [
        {"epoch": 1.0, "loss": 1.0},
        {"epoch": 1.0, "eval_accuracy": 0.5},
        {"epoch": 1.0, "train_runtime": 3.0},
        {"epoch": 2.0, "loss": 0.5},
        {"epoch": 2.0, "eval_accuracy": 0.6},
    ]
    (tmp_path / "state.json").write_text(json.dumps({"log_history": log}))
    assert [e.val_accuracy for e in from_trainer_state(tmp_path / "state.json", "hf").history] == [0.5, 0.6]


@pytest.mark.parametrize("name", ["Group: resnet", "backbone: resnet"])
def test_the_mean_of_a_group_of_runs_is_refused(tmp_path: Path, name: str) -> None:
    columns = [f"{name} - val_accuracy", f"{name} - val_accuracy__MIN", f"{name} - val_accuracy__MAX"]
    lines = [",".join(["Step", *columns]), "1,0.5,0.4,0.6", "2,0.6,0.5,0.7"]
    (tmp_path / "chart.csv").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="mean of a group of runs"):
        from_wandb(tmp_path / "chart.csv", "x")


def test_predictions_with_other_separators_and_encodings(tmp_path: Path) -> None:
    rows = ["path,true,predicted", "a.jpg,Käfer,Käfer", "b.jpg,fox,Käfer"]
    for number, (mark, encoding) in enumerate([(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16")]):
        file = tmp_path / f"{number}.csv"
        file.write_bytes("\r\n".join(row.replace(",", mark) for row in rows).encode(encoding))
        predictions = read_predictions(file)
        assert predictions.classes == ("Käfer", "fox") and predictions.correct.tolist() == [True, False]
    (tmp_path / "latin.csv").write_bytes("\n".join(rows).encode("latin-1"))
    with pytest.raises(RecordError, match="not UTF-8") as caught:
        read_predictions(tmp_path / "latin.csv")
    assert "save it as UTF-8" in caught.value.hint


def test_a_record_cannot_show_what_is_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:x:0:0\npassword=hunter2\n")
    (tmp_path / "r").mkdir()
    with pytest.raises(RecordError) as caught:
        read_predictions(tmp_path / "r" / ".." / "secret")
    assert "x:0:0" not in str(caught.value) and "hunter2" not in str(caught.value) + caught.value.hint


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), ("0.5", 0.5), (None, None), (True, None), ("x", None), ([1], None), (10**400, None), ("nan", None)],
)
def test_only_finite_numbers_are_read(value: object, number: float | None) -> None:
    assert to_number(value) == number
