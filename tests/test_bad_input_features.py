"""Bad input of the commands that are built on runs: each case is refused in one sentence, and nothing is written."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.refusing import Says, cases, write

pytestmark = pytest.mark.slow

LONG = "x" * 300

COMMAND_LINES: list[tuple[str, int, Says]] = [
    # words, exit code, parts of the message; {run} is a trained run, {manifest} its split
    ("tune", 2, "nothing to tune"),
    ("tune nowhere", 2, "nowhere"),
    ("tune file.txt", 2, "file.txt"),
    ("tune empty", 1, "empty"),
    ("tune photos --budget soon", 2, "soon"),
    ("tune photos --budget 1s", 2, "1s"),
    ("tune photos --budget -5m", 2, "-5m"),
    ("tune photos --budget 1h30x", 2, "1h30x"),
    ("tune photos --budget 99999h", 2, "99999h"),
    ("tune photos --budget 1e3s", 2, "1e3s"),
    ("tune photos --strategy hed", 2, ("hed", "head")),
    ("tune photos --seed -1", 2, "-1"),
    ("tune photos --seed 1.5", 2, "1.5"),
    ("tune photos --out file.txt", 2, "file.txt"),
    ("tune photos --set seed=3", 2, "seed"),
    ("tune photos --set name=x", 2, "name"),
    ("tune photos --set strategy.name=full", 2, "strategy.name"),
    ("tune photos --set optim.lrr=1", 2, ("lrr", "lr")),
    ("tune photos --set optim.lr", 2, "optim.lr"),
    ("tune photos --config nowhere.yaml", 2, "nowhere.yaml"),
    ("tune --resume nowhere", 2, "nowhere"),
    ("tune --resume empty", 2, "empty"),
    ("tune --resume file.txt", 2, "file.txt"),
    ("tune photos --resume empty", 2, "--resume"),
    ("train --folds 0", 2, "0"),
    ("train --folds 1", 2, "1"),
    ("train --folds 101", 2, "101"),
    ("train --folds 2.5", 2, "2.5"),
    ("train --folds many", 2, "many"),
    ("train --folds 3 --seeds 2", 2, "--seeds"),
    ("train --folds 3 --find-lr", 2, "--find-lr"),
    ("train --folds 3 --split nowhere.csv", 2, "nowhere.csv"),
    ("train --folds 3 --resume {run}", 2, "single run"),
    ("train --folds 90 --weights none --split {manifest}", 2, "90"),
    ("train --resume empty --folds 3", 2, "empty"),
    ("eval {run} --coverage 1", 2, "1"),
    ("eval {run} --coverage 0", 2, "0"),
    ("eval {run} --coverage nan", 2, "nan"),
    ("eval {run} --coverage most", 2, "most"),
    ("eval {run} --by-class", 2, "--coverage"),
    ("eval {run} --rollup 1.5 --taxa t.csv", 2, "1.5"),
    ("eval {run} --taxa nowhere.csv", 2, "nowhere.csv"),
    ("eval {run} --taxa file.txt", 2, "file.txt"),
    ("eval {run} --taxa empty", 1, "empty"),
    ("eval {run} --taxa folders", 2, "folders"),
    ("eval {run} --root nowhere", 1, "nowhere"),
    ("eval {run} --image-size 5000", 2, "5000"),
    ("eval file.txt", 1, "file.txt"),
    ("predict {run}", 2, "images"),
    ("predict {run} nowhere", 2, "nowhere"),
    ("predict {run} empty", 2, "empty"),
    ("predict {run} photos --coverage 2", 2, "2"),
    ("predict {run} photos --by-class", 2, "--coverage"),
    ("predict {run} photos --ensemble nowhere", 2, "nowhere"),
    ("predict {run} photos --ensemble file.txt", 2, "file.txt"),
    ("predict {run} photos --taxa nowhere.csv", 2, "nowhere.csv"),
    ("predict {run} photos --top 0", 2, "0"),
    ("predict {run} photos --rollup -1", 2, "-1"),
    ("predict {run} file.txt", 1, "file.txt"),
    ("predict file.txt photos", 2, "file.txt"),
    ("predict {run} photos/class0/000.png --out photos/class0/000.png", 2, "one of the inputs"),
    ("predict {run} photos/class0 --out photos/class0/000.png", 2, "one of the images"),
    ("predict {run} photos/class0 --out /dev/null", 2, "/dev/null is not a file"),
    ("predict {run} photos/class0 --out {run}/record.json", 2, "belongs to the run"),
    ("export {run} --out /dev/null --format onnx", 2, "/dev/null is not a file"),
    ("export {run} --out / --format hub-folder", 2, "/"),
    ("runs html --out {run}/record.json", 2, "belongs to the run"),
    ("compare {run} {run}", 2, "passed twice"),
    ("predict {run} photos --device tpu", 2, "tpu"),
    ("export {run} --format tflite", 2, ("tflite", "onnx")),
    ("export {run} --push-to-hub name", 2, "name"),
    ("export {run} --push-to-hub a/b/c", 2, "a/b/c"),
    ("export {run} --push-to-hub 'a b/c'", 2, "a b/c"),
    ("export {run} --push-to-hub ../c", 2, "../c"),
    ("export {run} --out file.txt/x.onnx", 2, "file.txt"),
    ("export {run} --format safetensors --out {run}/model.safetensors", 2, "model.safetensors"),
    ("export empty", 2, "empty"),
    ("runs show nowhere", 2, "nowhere"),
    ("runs show ''", 2, "no such run"),
    ("runs show ..", 2, ".."),
    ("runs delete nowhere --yes", 2, "nowhere"),
    ("runs delete {run} --yes", 2, "only runs directly inside"),
    ("runs delete . --yes", 2, "."),
    ("runs delete ../.. --yes", 2, "../.."),
    ("runs delete", 2, "RUN"),
    ("runs list --where lr", 2, "lr"),
    ("runs list --where lrr=1", 2, ("lrr", "lr")),
    ("runs list --where lr>fast", 2, "fast"),
    ("runs list --where =3", 2, "=3"),
    ("runs list --sort accuracy", 2, "accuracy"),
    ("runs list --limit 0", 2, "0"),
    ("runs --runs-dir nowhere", 2, "nowhere"),
    ("runs --runs-dir file.txt", 2, "file.txt"),
    ("runs html --out .", 2, "--out . is a folder"),
    ("runs html --out file.txt/x.html", 2, "file.txt"),
    ("runs html --where x", 2, "x"),
    ("runs lst", 2, "lst"),
    ("learning-curve nowhere", 2, "nowhere"),
    ("learning-curve empty", 2, "empty"),
    ("learning-curve --target 2", 2, "2"),
    ("learning-curve --target nan", 2, "nan"),
    ("learning-curve --draws 1", 2, "1"),
    ("learning-curve --split nowhere.csv", 2, "nowhere.csv"),
    ("learning-curve {run} --config x.yaml", 2, "--config"),
    ("learning-curve --split {manifest} --backbone resnet5", 2, ("resnet5", "resnet50")),
    ("learning-curve --split {manifest} --set optim.lrr=1", 2, ("lrr", "lr")),
    ("audit", 2, "split"),
    ("audit nowhere.csv", 2, "nowhere.csv"),
    ("audit file.txt", 1, "file.txt"),
    ("audit empty", 2, "empty"),
    ("audit {manifest} --subset dev", 2, "dev"),
    ("audit {manifest} --limit 0", 2, "0"),
    ("audit {manifest} --backbone resnet5", 2, ("resnet5", "resnet50")),
    ("suggest", 2, "run"),
    ("suggest nowhere photos", 2, "nowhere"),
    ("suggest empty photos", 2, "empty"),
    ("suggest {run} nowhere", 2, "nowhere"),
    ("suggest {run} empty", 2, "empty"),
    ("suggest {run} photos --count 0", 2, "0"),
    ("suggest {run} photos --count many", 2, "many"),
    ("split photos --group-by nowhere.csv", 2, "nowhere.csv"),
    ("split photos --corrections nowhere.csv", 2, "nowhere.csv"),
    ("split photos --corrections empty", 2, "empty"),
    ("split photos --classes-from genus", 1, "genus"),
    ("split photos --exclude '*'", 1, "*"),
    ("cache --cache-dir file.txt", 2, "file.txt"),
    ("compare {run} {run}/nowhere", 2, "nowhere"),
    ("sweep best nowhere", 2, "nowhere"),
    ("sweep soup", 2, "no sweeps"),
    # names that no file can have
    *(
        (words.replace("LONG", LONG), code, LONG[:60])
        for words, code in (
            ("train --config LONG", 2),
            ("train --split LONG", 1),
            ("train --resume LONG", 1),
            ("train --name LONG", 2),
            ("split LONG", 1),
            ("split photos --group-by LONG.csv", 1),
            ("eval LONG", 1),
            ("eval {run} --taxa LONG", 1),
            ("predict LONG photos", 1),
            ("predict {run} LONG", 1),
            ("export LONG", 1),
            ("compare LONG", 1),
            ("tune LONG", 1),
            ("tune --resume LONG", 1),
            ("audit LONG", 1),
            ("suggest LONG photos", 1),
            ("suggest {run} LONG", 1),
            ("learning-curve LONG", 1),
            ("runs show LONG", 1),
            ("runs --runs-dir LONG", 1),
            ("cache --cache-dir LONG/x --clear", 1),
            ("record new LONG --name a --out a.json", 1),
            ("record wandb LONG --name a --out a.json", 1),
            ("sweep create LONG", 2),
            ("sweep run LONG", 2),
        )
    ),
]

TABLES: list[tuple[str, str | bytes, int, Says]] = [
    # words that name table.csv, its content, exit code, parts of the message
    ("split table.csv", "", 1, "table.csv"),
    ("split table.csv", "path;label\na;b\n", 1, "path and label"),
    ("split table.csv", "path,label,label\nx.png,a,b\n", 1, "two columns named label"),
    ("split table.csv", "path,label\n../x.png,a\n", 1, ("line 2", "../x.png")),
    ("split table.csv", "path,label\n/etc/passwd,a\n", 1, ("line 2", "/etc/passwd")),
    ("split table.csv", "path,label\nx.png,a,b\n", 1, ("line 2", "more values")),
    ("split table.csv", "path,label\nx.png\n", 1, ("line 2", "label")),
    ("split table.csv", "path,label,subset\nx.png,a,dev\n", 1, ("line 2", "dev")),
    ("split table.csv", "path,label\nx.png,a\nx.png,a\n", 1, ("line 3", "x.png")),
    ("split table.csv", b"path,label\n\xe9.png,a\n", 1, "UTF-8"),
    ("split table.csv", "path,label,x,y,w,h\nx.png,a,0,0,2,1\n", 1, ("line 2", "w 2")),
    ("split table.csv", "path,label,x,y,w,h\nx.png,a,0,0,nan,1\n", 1, ("line 2", "w nan")),
    ("split table.csv", "path,label,x,y,w\nx.png,a,0,0,1\n", 1, ("line 2", "h missing")),
    ("split table.csv", "path,label,x,y,w,h\nx.png,a,0.5,half,0.1,0.1\n", 1, ("line 2", "half")),
    ("split photos --group-by table.csv", "", 1, "table.csv"),
    ("split photos --group-by table.csv", "path,site\nclass0/000.png,x\n", 1, "group"),
    ("split photos --group-by table.csv", "path,group\nclass0/000.png,x\nclass0/000.png,y\n", 1, ("line 3", "'y'")),
    ("split photos --group-by table.csv", "path,group\nnowhere.png,x\n", 2, "table.csv"),
    ("split photos --corrections table.csv", "path,label\na,b\n", 1, "verdict"),
    ("split photos --corrections table.csv", "path,verdict\nclass0/000.png,dorp\n", 1, ("dorp", "drop")),
    ("split photos --corrections table.csv", "path,verdict\nclass0/000.png,ok\nclass0/000.png,drop\n", 1, "line 3"),
    ("split photos --corrections table.csv", "path,verdict\nnowhere.png,drop\n", 2, "table.csv"),
    ("eval {run} --taxa table.csv", "", 1, "table.csv"),
    ("eval {run} --taxa table.csv", "label,family\nclass0,x\n", 2, "class1"),
    ("eval {run} --taxa table.csv", "label\nclass0\n", 2, "rank"),
    ("eval {run} --taxa table.csv", "label,genus,genus\nclass0,a,b\n", 2, "genus twice"),
    ("eval {run} --taxa table.csv", "label,genus\nclass0,a,b\n", 2, "line 2"),
    ("eval {run} --taxa table.csv", "label,genus\nclass0,a\nclass0,b\n", 2, ("line 3", "class0")),
    ("eval {run} --taxa table.csv", "label,genus\nclass0,\nclass1,\nclass2,\n", 2, "no taxa"),
    ("eval {run} --taxa table.csv", b"label,genus\n\xe9,a\n", 1, "UTF-8"),
    ("predict {run} table.csv", "", 1, "table.csv"),
    ("predict {run} table.csv", "path,label\nx.png,a\n", 1, "h"),
    ("predict {run} table.csv", "path,x,y,w,h\nx.png,0,0,2,1\n", 1, ("line 2", "w 2")),
    ("predict {run} table.csv", "path,x,y,w,h\nx.png,-1,0,1,1\n", 1, ("line 2", "x -1")),
    ("predict {run} table.csv", "path,x,y,w,h\nnowhere.png,0,0,1,1\n", 1, "nowhere.png"),
    ("predict {run} table.csv", "path,x,y,w,h\n", 1, "table.csv"),
    ("predict {run} table.csv --out table.csv", "path,x,y,w,h\nx.png,0,0,1,1\n", 2, "one of the inputs"),
]

FOLD = {"fold": 1, "run": "cv-fold-1", "num_train": 3, "num_val": 2}
SUMMARY: dict[str, Any] = {
    "name": "cv",
    "created": "2026",
    "folds": 2,
    "seed": 0,
    "split": {"manifest": "s.csv", "fingerprint": "0", "counts": {}},
    "complete": True,
    "metrics": {"accuracy": {"mean": 0.5, "deviation": 0.1, "lowest": 0.4, "highest": 0.6, "values": [0.4, 0.6]}},
    "runs": [FOLD, {**FOLD, "fold": 2, "run": "cv-fold-2"}],
}
SUMMARIES: list[tuple[Any, int, Says]] = [
    # text of cross-validation.json, or keys that a valid one gets; exit code of `compare cv cv`
    ("", 1, "JSON"),
    ("[]", 1, "cross-validation.json"),
    ("[" * 100_000, 1, "JSON"),
    (b"\xff\xfe", 1, "JSON"),
    ({"schema_version": 2}, 1, "schema_version"),
    ({"folds": 1}, 1, "folds"),
    ({"folds": 3}, 1, "3 folds"),
    ({"runs": []}, 1, "2 folds"),
    ({"metrics": {}}, 1, "2 folds"),
    ({"metrics": {"accuracy": 0.5}}, 1, "accuracy"),
    ({"complete": False}, 2, "not finished"),
    ({"name": "../x"}, 1, "../x"),
    ({"name": ""}, 1, "''"),
    ({"split": None}, 1, "split"),
    *(({"runs": [{**FOLD, "run": run}] * 2}, 1, run) for run in ("../other", "/etc", "..", "", ".hidden")),
]

TRIAL = {"name": "head-1", "stage": "heads", "strategy": "head", "params": {}, "seed": 0, "directory": "t/runs/head-1"}
STATE: dict[str, Any] = {"data": "photos", "settings": [], "strategies": [], "seed": 0, "budget_s": 60}
STATES: list[tuple[Any, Says]] = [
    # text of tune.json, or keys that a valid one gets; the exit code of `tune --resume t` is 2
    ("", "tune.json"),
    ("[]", "tune.json"),
    ("[" * 100_000, "tune.json"),
    (b"\xff\xfe", "tune.json"),
    ({"version": 2}, "version"),
    ({"budget_s": 0}, "budget_s"),
    ({"budget_s": "x"}, "budget_s"),
    ({"seed": "x"}, "seed"),
    ({"more": 1}, "more"),
    ({"trials": [{}]}, "trials"),
    ({"trials": [{**TRIAL, "stage": "x"}]}, "stage"),
    ({"trials": [{**TRIAL, "name": "../x"}]}, "../x"),
    ({"trials": [{**TRIAL, "name": ".."}]}, "'..'"),
    ({"trials": [{**TRIAL, "name": "/etc"}]}, "/etc"),
    ({"trials": [{**TRIAL, "name": ""}]}, "''"),
    ({"trials": [{**TRIAL, "stage": "final", "name": "documents"}]}, "documents"),
    ({"run": "elsewhere"}, "elsewhere"),
    ({"chosen": "gone"}, "gone"),
    ({"given": [["optim.lrr", 1]]}, ("lrr", "lr")),
]


@pytest.fixture
def place(images: Path) -> None:
    """A working folder with photographs, an empty folder, and a file that is none of them."""
    Path("empty").mkdir()
    Path("runs").mkdir()
    write(Path("file.txt"), "text\n")
    Path("photos").symlink_to(images)


@pytest.fixture
def refused_with_run(refused, trained: Path, manifest_file: Path) -> Callable[[str, int, Says], None]:
    """Run words in which {run} and {manifest} stand for paths; the run and the split stay as they are."""

    def run(words: str, code: int, says: Says) -> None:
        places = (trained, manifest_file.parent)
        before = [sorted(file for file in folder.rglob("*") if file.name != ".lock") for folder in places]
        record = (trained / "record.json").read_bytes()
        refused(shlex.split(words.format(run=trained, manifest=manifest_file)), code, says)
        assert [sorted(file for file in folder.rglob("*") if file.name != ".lock") for folder in places] == before
        assert (trained / "record.json").read_bytes() == record

    return run


@pytest.mark.usefixtures("place")
@cases(COMMAND_LINES)
def test_command_line(case: tuple[str, int, Says], refused_with_run) -> None:
    refused_with_run(*case)


@pytest.mark.usefixtures("place")
@cases(TABLES)
def test_table(case: tuple[str, str | bytes, int, Says], refused_with_run, images: Path) -> None:
    words, text, code, says = case
    write(Path("table.csv"), text)
    shutil.copy(images / "class0" / "000.png", "x.png")
    refused_with_run(f"{words} --no-near" if words.startswith("split") else words, code, says)


def changed(valid: dict[str, Any], change: Any) -> str | bytes:
    return json.dumps(valid | change) if isinstance(change, dict) else change


@cases(SUMMARIES)
def test_cross_validation(case: tuple[Any, int, Says], refused) -> None:
    for folder in ("cv", "other"):
        Path(folder).mkdir()
        write(Path(folder, "cross-validation.json"), changed(SUMMARY, case[0] if folder == "cv" else {}))
    refused(["compare", "cv", "other"], *case[1:])


@cases(STATES)
def test_tuning(case: tuple[Any, Says], refused) -> None:
    Path("t").mkdir()
    Path("documents").mkdir()
    write(Path("t/tune.json"), changed(STATE | {"trials": [TRIAL]}, case[0]))
    refused(["tune", "--resume", "t"], 2, case[1])
    assert Path("documents").is_dir()
