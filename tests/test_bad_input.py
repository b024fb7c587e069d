"""Bad input: each case is refused in one sentence with its value, and nothing is written.

A case is a tuple of the input, the exit code and the parts that the message must have. The runners at the end pass the
input to the command line, and `assert_refused` is what they have in common.
"""

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from inat_ft.engine.checkpoint import CheckpointError, load_checkpoint
from inat_ft.engine.early_stopping import EarlyStopping
from inat_ft.engine.fit import TrainState
from inat_ft.settings import load_config
from inat_ft.setup import Setup, prepare
from tests.refusing import Says, cases, write

COMMAND_LINES: list[tuple[str, int, Says]] = [
    # words, exit code, parts of the message
    ("trian", 2, "trian"),
    ("--lr 1", 2, "--lr"),
    ("train --epoch 5", 2, "--epoch"),
    ("train extra", 2, "extra"),
    ("train --epochs 0", 2, ("epochs", "0")),
    ("train --epochs -5", 2, ("epochs", "-5")),
    ("train --epochs five", 2, "five"),
    ("train --epochs 1.5", 2, "1.5"),
    ("train --epochs 99999999999999999999999", 2, "99999999999999999999999"),
    ("train --epochs", 2, "--epochs"),
    ("train --lr 0", 2, "0.0"),
    ("train --lr -1", 2, "-1.0"),
    ("train --lr nan", 2, "nan is not a finite number"),
    ("train --lr inf", 2, "inf"),
    ("train --lr 1e999", 2, "inf"),
    ("train --lr fast", 2, "fast"),
    ("train --lr 1,5", 2, "1,5"),
    ("train --batch-size 0", 2, "0"),
    ("train --batch-size 65537", 2, "65537"),
    ("train --dropout 1", 2, "1.0"),
    ("train --dropout -0.1", 2, "-0.1"),
    ("train --image-size 15", 2, "15"),
    ("train --image-size 100000", 2, "100000"),
    ("train --eval-image-size 1", 2, "1"),
    ("train --resize stretch", 2, ("stretch", "squash")),
    ("train --augment flips", 2, ("flips", "flip")),
    ("train --views 65", 2, "65"),
    ("train --views 2", 2, "--augment standard"),
    ("train --balance weight", 2, ("weight", "weights")),
    ("train --optimizer adma", 2, ("adma", "adam")),
    ("train --optimizer ''", 2, "optimizer"),
    ("train --weight-decay 11", 2, "11"),
    ("train --label-smoothing 1", 2, "1.0"),
    ("train --schedule cosinus", 2, ("cosinus", "cosine")),
    ("train --warmup-epochs -1", 2, "-1"),
    ("train --layer-decay 0", 2, "0.0"),
    ("train --clip-norm -1", 2, "-1"),
    ("train --mixup -0.2", 2, "-0.2"),
    ("train --cutmix many", 2, "many"),
    ("train --regularize l2", 2, ("l2", "l2-sp")),
    ("train --average mean", 2, "mean"),
    ("train --alpha 2", 2, "2.0"),
    ("train --alpha 0.5", 2, "--average wise-ft"),
    ("train --accumulate 0", 2, "0"),
    ("train --patience -1", 2, "-1"),
    ("train --monitor val_acc", 2, ("val_acc", "val_accuracy")),
    ("train --name a/b", 2, "a/b"),
    ("train --name ../up", 2, "../up"),
    ("train --name ''", 2, "name"),
    ("train --name .hidden", 2, ".hidden"),
    ("train --seed -1", 2, "-1"),
    ("train --seed 4294967296", 2, "4294967296"),
    ("train --device tpu", 2, "tpu"),
    ("train --device cuda:x", 2, "cuda:x"),
    ("train --device cuda:99999999999", 2, "cuda:99999999999"),
    ("train --precision fp8", 2, ("fp8", "fp16")),
    ("train --workers -1", 2, "-1"),
    ("train --workers 100000", 2, "100000"),
    ("train --cache disk", 2, "disk"),
    ("train --mode hed", 2, ("hed", "head")),
    ("train --mode ''", 2, "strategy"),
    ("train --backbone resnet5 --split {manifest}", 2, ("resnet5", "resnet50")),
    ("train --mode partial --unfreeze-from layer9 --weights none --split {manifest}", 2, ("layer9", "layer4")),
    ("train --weights imagenet21k --split {manifest}", 1, "imagenet21k"),
    ("train --weights nowhere.pth --split {manifest}", 1, "nowhere.pth"),
    ("train --root nowhere --weights none --split {manifest}", 1, "nowhere"),
    ("train --backbone ''", 2, "backbone"),
    ("train --backbone timm:", 2, "timm"),
    ("train --backbone nowhere:net", 2, "nowhere"),
    ("train --unfreeze-from layer4 --mode head", 2, "--unfreeze-from"),
    ("train --wandb on", 2, "on"),
    ("train --tracker wandbb", 2, ("wandbb", "wandb")),
    ("train --seeds 0", 2, "0"),
    ("train --seeds 4 --resume runs/x", 2, "runs/x"),
    ("train --config nowhere.yaml", 2, "nowhere.yaml"),
    ("train --config .", 2, "folder"),
    ("train --config /dev/null/x", 2, "/dev/null/x"),
    ("train --resume nowhere", 2, "nowhere"),
    ("train --resume .", 2, "config.yaml"),
    ("train --resume runs/x --epochs 3", 2, "--resume"),
    ("train --split nowhere.csv", 2, "nowhere.csv"),
    ("train --split .", 2, "."),
    ("train --split ~nosuchuser/x.csv", 2, "~nosuchuser"),
    ("train", 2, "split"),
    ("train --show-config --set optim.lr", 2, "optim.lr"),
    ("split nowhere", 2, "nowhere"),
    ("split", 2, "DATA"),
    ("split file.txt", 2, "file.txt"),
    ("split empty", 1, "empty"),
    ("split photos --val-fraction 0", 2, "0"),
    ("split photos --val-fraction 1", 2, "(got '1')"),
    ("split photos --val-fraction nan", 2, "nan"),
    ("split photos --val-fraction 0.9 --test-fraction 0.9", 2, "0.9"),
    ("split photos --test-fraction -0.1", 2, "-0.1"),
    ("split photos --seed 4294967296", 2, "4294967296"),
    ("split photos --seed x", 2, "x"),
    ("split photos --out .", 2, "--out"),
    ("split photos --out file.txt/x.csv", 2, "file.txt"),
    ("split photos --source folder", 2, "folder"),
    ("split photos --group-by '('", 2, "("),
    ("split photos --leakage ignore", 2, "ignore"),
    ("split photos --classes-from tribe", 2, "tribe"),
    ("split photos --max-pixels 0", 2, "0"),
    ("split photos --workers 257", 2, "257"),
    ("split photos --check nowhere.csv", 2, "--check"),
    ("split --check nowhere.csv", 2, "nowhere.csv"),
    ("split --check file.txt", 1, "file.txt"),
    ("fetch", 2, "name"),
    ("fetch imagenet", 2, "imagenet"),
    ("fetch inat12k --url ftp://host/x.zip", 2, "ftp://host/x.zip"),
    ("fetch inat12k --url 'http://host/a b'", 2, "a b"),
    ("fetch inat12k --url http://", 2, "http://"),
    ("fetch inat12k --url http://host:99999/x", 2, "99999"),
    ("fetch inat12k --sha256 xyz", 2, "xyz"),
    ("fetch digits --to file.txt", 2, "file.txt"),
    ("fetch digits --keep-archive", 2, "--keep-archive"),
    ("compare", 2, "records"),
    ("compare nowhere", 2, "nowhere"),
    ("compare empty empty", 1, "empty"),
    ("compare file.txt", 1, "file.txt"),
    ("compare empty --metric acc", 2, ("acc", "accuracy")),
    ("compare empty --margin 2", 2, "2"),
    ("compare empty --margin nan", 2, "nan"),
    ("compare empty --fail-under -2", 2, "-2"),
    ("eval", 2, "run"),
    ("eval nowhere", 2, "nowhere"),
    ("eval empty", 2, "empty"),
    ("eval empty --subset train", 2, "train"),
    ("eval empty --tta rotate", 2, "rotate"),
    ("eval empty --image-size 15", 2, "15"),
    ("eval empty --precision fp8", 2, "fp8"),
    ("eval empty --device tpu", 2, "empty"),
    ("eval empty --weights last", 2, "last"),
    ("predict", 2, "run"),
    ("predict nowhere", 2, "images"),
    ("predict nowhere file.txt", 2, "nowhere"),
    ("predict empty file.txt", 2, "empty"),
    ("predict empty file.txt --top 0", 2, "0"),
    ("export", 2, "run"),
    ("export nowhere", 2, "nowhere"),
    ("export empty --format tflite", 2, "empty"),
    ("record new", 2, "predictions"),
    ("record new nowhere.csv --name a --out a.json", 2, "nowhere.csv"),
    ("record new file.txt --name '' --out a.json", 2, "''"),
    ("record new file.txt --name a --out file.txt", 2, "file.txt"),
    ("record new empty --name a --out a.json", 1, "empty"),
    ("record wandb nowhere.csv --name a --out a.json", 2, "nowhere.csv"),
    ("record huggingface nowhere --name a --out a.json", 2, "nowhere"),
    ("record keras x", 2, "keras"),
    ("sweep creat", 2, "creat"),
    ("sweep create nowhere.yaml", 2, "nowhere.yaml"),
    ("sweep create empty", 2, "empty"),
    ("sweep create file.txt --strategies", 2, "file.txt"),
    ("sweep create --backend aws", 2, "aws"),
    ("sweep create --name a/b", 2, "a/b"),
    ("sweep create --name ..", 2, ".."),
    ("sweep create --seed -1", 2, "-1"),
    ("sweep create --set lr", 2, "lr"),
    ("sweep create --set lrr=1", 2, ("lrr", "lr")),
    ("sweep create --set data.split=nowhere.csv", 2, "nowhere.csv"),
    ("sweep create --storage sqlite:///x.db", 2, "sqlite:///x.db"),
    ("sweep create --storage postgresql://host:12x/db", 2, "12x"),
    ("sweep create --storage nonsense", 2, "nonsense"),
    ("sweep run", 2, "no sweeps"),
    ("sweep run nowhere", 2, "nowhere"),
    ("sweep run --workers 0", 2, "0"),
    ("sweep run --count 0", 2, "0"),
    ("sweep status nowhere", 2, "nowhere"),
    ("sweep best nowhere --top 0", 2, "0"),
    ("sweep best nowhere --confirm 0", 2, "0"),
    ("sweep stop ../x", 2, "../x"),
    ("sweep report nowhere", 2, "nowhere"),
    ("sweep soup nowhere", 2, "nowhere"),
    ("strategies hed", 2, ("hed", "head")),
    ("cache --kind all", 2, "all"),
    ("cache --clear --kind nothing", 2, "nothing"),
    ("doctor extra", 2, "extra"),
    ("demo --to file.txt", 2, "file.txt"),
]

SETTINGS: list[tuple[str, Says]] = [
    # KEY=VALUE of --set; the exit code is 2
    ("", "key=value"),
    ("=1", "=1"),
    ("lr", "lr"),
    ("learning=1", "learning"),
    ("optim.lrr=1", ("lrr", "lr")),
    ("optm.lr=1", ("optm", "optim")),
    ("optim.=1", "unknown key ''"),
    (".lr=1", "''"),
    ("optim..lr=1", "unknown key ''"),
    ("optim.lr.x=1", "optim.lr"),
    ("optim=1", ("optim", "optimizer")),
    ("optim=[1, 2]", "optimizer"),
    ("optim.lr=[1", "[1"),
    ("optim.lr={a: 1, a: 2}", "duplicate"),
    ("optim.lr=!!python/object/apply:os.system [id]", "!!python"),
    ("optim.lr=&a [*a]", "optim.lr"),
    ("optim.lr=*a", "*a"),
    ("optim.epochs=1e3x", "1e3x"),
    ("optim.lr=" + "9" * 5000, "5,000"),
    ("optim.lr=" + "[" * 3000, "nested"),
    ("optim.betas=[0.9, 1.1]", "betas"),
    ("optim.momentum=1", "1"),
    ("optim.nesterov=maybe", "nesterov"),
    ("model.nothing=1", "nothing"),
    ("strategy.rank=8", "rank"),
    ("strategy.name=[head]", "strategy.name"),
    ("strategy.name=lora --set strategy.rank=0", "0"),
    ("data.split=[a.csv]", "data.split"),
    ("data.root=7", "data.root"),
    ("data.changed=maybe", "maybe"),
    ("track.nothing={}", "nothing"),
    ("track.wandb=maybe", "maybe"),
    ("track.wandb.project=[1]", "project"),
    ("compute.workers=0x_", "0x_"),
    ("compute.compile=2", "2"),
    ("stop.patience=.inf", "inf"),
    ("stop.min_delta=-1", "-1"),
    ("name=1", "1"),
    ("name=null/x", "null/x"),
    ("seed=1.5", "1.5"),
    ("seed=12:30:45", "12:30:45"),
    ("seed=null", "seed"),
]

CONFIGS: list[tuple[str | bytes, Says]] = [
    # text of the file of --config; the exit code is 2
    ("- optim", "list"),
    ("3", "int"),
    ("text", "str"),
    ("optim: [1, 2]", ("optim", "[1, 2]")),
    ("optim: 5", ("optim", "5")),
    ("data: [x]", "data"),
    ("optim: {lr: 1, lr: 2}", ("line 1", "lr")),
    ("optim:\n  lr: 1\noptim:\n  lr: 2", ("line 3", "optim")),
    ("optim:\n\tlr: 1", "line 2"),
    ("optim: {lr: 1", "line 1"),
    ("optim: 'x", "line 1"),
    ("optim: {lr: 0x_}", "0x_"),
    ("optim: {lr: 0b_}", "0b_"),
    ("optim: {lr: !!int x}", "'x' is not of the type int"),
    ("optim: {lr: !!float x}", "'x'"),
    ("optim: {nesterov: !!bool x}", "'x'"),
    ("name: !!timestamp 2024-99-99", "timestamp"),
    ("name: !!binary aGk=", "binary"),
    ("name: !!python/name:os.system", "python/name"),
    ("name: !!python/object/apply:os.system ['id']", "python/object"),
    ("name: !mine x", "!mine"),
    ("seed: " + "7" * 5000, "5,000"),
    ("name: " + "[" * 5000 + "]" * 5000, "nested"),
    ("? [a]\n: 1", "line 1"),
    ("? {a: 1}\n: 1", "line 1"),
    ("a: &a [*a]", "a"),
    ("name: *nothing", "nothing"),
    ("<<: 3", "line 1"),
    ("<<: [{name: x}, 3]", "line 1"),
    ("name: x\n---\nname: y", "document"),
    ('name: "\\xZZ"', "line 1"),
    ("%YAML 9.9\n---\nname: x", "YAML"),
    ("name: \x07", "config.yaml"),
    (b"\xff\xfe\x00name", "config.yaml"),
    (b"name: \xe9t\xe9", "config.yaml"),
    (b"\x00\x01\x02", "config.yaml"),
    ("nam: x", ("nam", "name")),
    ("1: 2", "1"),
    ("null: 2", "None"),
    ("optim: {learning_rate: 1}", "learning_rate"),
    ("optim: {lr: yes}", "yes"),
    ("optim: {epochs: 012x}", "012x"),
    ("optim: {epochs: 5.5}", "5.5"),
    ("optim: {epochs: '5.5'}", "5.5"),
    ("optim: {batch_size: [32]}", "[32]"),
    ("optim: {lr: null}", "lr"),
    ("data: {split: 7}", "7"),
    ("data: {split: ~nosuchuser/x.csv}", "~nosuchuser"),
    ("data: {root: [a]}", "root"),
    ("data: {image_size: large}", "large"),
    ("model: {backbone: 5}", "5"),
    ("strategy: {name: hed}", ("hed", "head")),
    ("strategy: {name: head, rank: 8}", "rank"),
    ("strategy: head", ("strategy", "head")),
    ("track: {wandb: {mode: x}}", "wandb"),
    ("track: [wandb]", "wandb"),
    ("compute: {device: gpu}", "gpu"),
    ("compute: {deterministic: 3}", "3"),
    ("stop: {monitor: accuracy}", "accuracy"),
    ("seed: -1", "-1"),
]

Manifest = tuple[dict[str, Any], list[list[str]]]
PLAIN_ROWS = [["a/1.png", "a", "train", "0" * 64, ""], ["b/1.png", "b", "val", "1" * 64, ""]]


def header(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function that changes keys of a manifest's header; `...` removes one."""
    return lambda before: {key: value for key, value in (before | changes).items() if value is not ...}


MANIFESTS: list[tuple[Any, int, Says]] = [
    # bytes of the file, changes of the header, or rows; the exit code of `split --check`
    (b"", 1, "not a manifest"),
    (b"path,label\n", 1, "not a manifest"),
    (b"\x89PNG\r\n\x1a\n", 1, "damaged"),
    (b"\xff\xfe", 1, "damaged"),
    (b"# inat-ft manifest", 1, "not a manifest"),
    (b"# inat-ft manifest \n", 1, "damaged"),
    (b"# inat-ft manifest []\n", 1, "damaged"),
    (b"# inat-ft manifest 3\n", 1, "damaged"),
    (b"# inat-ft manifest {}\n", 1, "damaged"),
    (b'# inat-ft manifest {"schema": 1}\n', 1, "damaged"),
    (b"# inat-ft manifest " + b"[" * 100_000 + b"\n", 1, "damaged"),
    (b'# inat-ft manifest {"schema": ' + b"9" * 5000 + b"}\n", 1, "damaged"),
    (header(schema=2), 1, "schema 2"),
    (header(schema=None), 1, "schema None"),
    (header(root=3), 1, "root"),
    (header(root=...), 1, "root"),
    (header(root="a\0b"), 1, "null byte"),
    (header(classes="ab"), 1, "classes"),
    (header(classes=["a", "a"]), 1, "twice"),
    (header(classes=["a", 3]), 1, "classes"),
    (header(classes=["a"]), 1, "b"),
    (header(classes=[]), 1, "a"),
    (header(seed="x"), 1, "seed"),
    (header(fingerprint=...), 1, "fingerprint"),
    (header(fingerprint="0" * 64), 1, "edited or damaged"),
    (header(left_out=3), 1, "left_out"),
    (header(left_out=[{}]), 1, "left_out"),
    (header(left_out=[{"path": "x", "reason": "odd"}]), 1, "left_out"),
    (header(exclude="x"), 1, "exclude"),
    (header(source=[1]), 1, "source"),
    ([["../secret.png", "a", "train", "0" * 64, ""]], 1, "../secret.png"),
    ([["a/../../secret.png", "a", "train", "0" * 64, ""]], 1, "a/../../secret.png"),
    ([["/etc/passwd", "a", "train", "0" * 64, ""]], 1, "/etc/passwd"),
    ([["a\0.png", "a", "train", "0" * 64, ""]], 1, "a\\x00.png"),
    ([["a/1.png", "a", "train", "0" * 64]], 1, "damaged"),
    ([["a/1.png", "a", "train", "0" * 64, "", "more"]], 1, "damaged"),
    ([["a/1.png", "c", "train", "0" * 64, ""]], 1, "'c'"),
    ([["a/1.png", "a", "dev", "0" * 64, ""]], 1, "'dev'"),
    ([["a/1.png"]], 1, "damaged"),
    ([["x" * 200_000, "a", "train", "0" * 64, ""]], 1, "damaged"),
]

RECORD: dict[str, Any] = {"name": "a", "test_accuracy": 0.5, "num_test": 100}
RECORDS: list[tuple[Any, Says]] = [
    # text of the file, or keys that a valid record gets; the exit code of `compare` is 1
    ("", "JSON"),
    ("{", "JSON"),
    ("[]", "list"),
    ("3", "int"),
    ("null", "NoneType"),
    ('"name"', "str"),
    (b"\xff\xfe\x00", "record.json"),
    (b"\x00" * 10, "JSON"),
    ("[" * 100_000, "record.json"),
    ('{"a":' * 50_000, "record.json"),
    ('{"num_test": ' + "9" * 5000 + "}", "record.json"),
    ("{}", "name"),
    ({"schema_version": 2}, "2"),
    ({"schema_version": "1"}, "'1'"),
    ({"name": ""}, "name"),
    ({"name": None}, "name"),
    ({"name": 5}, ("name", "5")),
    ({"name": "a\nb"}, "name"),
    ({"name": "a\x1b[31m"}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"test_accuracy": 1.5}, "1.5"),
    ({"test_accuracy": -0.1}, "-0.1"),
    ({"test_accuracy": "0.5"}, "'0.5'"),
    ({"test_accuracy": True}, "True"),
    ({"test_accuracy": float("nan")}, "test_accuracy"),
    ({"test_accuracy": [0.5]}, "test_accuracy"),
    ({"num_test": 0}, "0"),
    ({"num_test": 2.5}, "2.5"),
    ({"num_test": 10**10}, "10000000000"),
    ({"val_accuracy": 99}, "99"),
    ({"classes": "abc"}, "classes"),
    ({"classes": [1]}, "classes.0"),
    ({"config": []}, "config"),
    ({"seed": "x"}, "seed"),
    ({"split": "x.csv"}, "split"),
    ({"split": {}}, "split.manifest"),
    ({"split": {"manifest": "a\0b", "fingerprint": "", "counts": {}}}, "manifest"),
    ({"history": {}}, "history"),
    ({"history": [{}]}, "history.0.epoch"),
    ({"history": [{"epoch": 0}]}, "0"),
    ({"history": [{"epoch": 1, "val_accuracy": 80}]}, "80"),
    ({"best_epoch": 0}, "0"),
    ({"stopped_early": "no"}, "stopped_early"),
    ({"advice": ["sleep"]}, "sleep"),
    ({"parameters": {"total": -1, "trained": 0}}, "-1"),
    ({"seconds": {"total": "x"}}, "seconds.total"),
    ({"predictions": ["a.csv"]}, "predictions"),
    ({"predictions": {"test": 3}}, "3"),
    ({"predictions": {"test": "a\0b"}}, "predictions"),
    ({"predictions": {"test": ""}}, "predictions"),
    ({"notes": "text"}, "notes"),
    ({"val": {"subset": "dev"}}, "dev"),
    ({"test": {"subset": "test", "num_images": 0, "fingerprint": "", "metrics": {}}}, "num_images"),
    ({"test": {"subset": "test", "num_images": 1, "fingerprint": "", "metrics": {"accuracy": 0.5}}}, "accuracy"),
    ({"test_accuracy": ..., "acc": 0.5}, ("acc", "test_accuracy")),
    ({"test_accurracy": 0.5, "test_accuracy": ...}, ("test_accurracy", "test_accuracy")),
]

PREDICTIONS: list[tuple[str | bytes, Says]] = [
    # text of the file of `record new`; the exit code is 1
    ("", "theirs.csv is empty"),
    ("\n\n", "path, predicted, true"),
    ("path,true\na,x\n", "predicted"),
    ("path,true,predicted\n", "no predictions"),
    ("path;true;predicted\na;x\n", "line 2"),
    ("path,true,predicted\na,x\n", "line 2"),
    ("path,true,predicted\na,x,y,z\n", "line 2"),
    ("path,true,predicted\na,,y\n", ("line 2", "true")),
    ("path,true,predicted\n,x,y\n", ("line 2", "path")),
    ("path,true,predicted\na,x,x\na,x,x\n", ("line 3", "'a'")),
    ("path,true,predicted,path\na,x,x,b\n", "'path' twice"),
    ("path,true,predicted,p_x\na,x,y,1\n", ("line 2", "'y'")),
    ("path,true,predicted,p_x,p_y\na,x,y,0.5,half\n", "half"),
    ("path,true,predicted,p_x,p_y\na,x,y,0.5,\n", "not a number"),
    ("path,true,predicted,p_x,p_y\na,x,y,0.5,0.1\n", "0.6"),
    ("path,true,predicted,p_x,p_y\na,x,y,-0.5,1.5\n", "-0.5"),
    ("path,true,predicted,p_x,p_y\na,x,y,nan,1\n", "nan"),
    ("path,true,predicted,p_x,p_y\na,x,y,inf,0\n", "inf"),
    ("path,true,predicted,p_x,p_x\na,x,x,0.5,0.5\n", "'p_x' twice"),
    ('path,true,predicted\n"a,x,y\n', "line"),
    ("path,true,predicted\n" + "a" * 200_000 + ",x,y\n", "field larger"),
    ("{}", "path, predicted, true"),
    (b"path,true,predicted\n\xe9,x,y\n", "UTF-8"),
    (b"\xff\xfep", "UTF-8"),
    (b"\x89PNG\r\n\x1a\n", "UTF-8"),
    (b"path,true,predicted\na\0b,x\n", "line 2"),
]

WANDB: list[tuple[str, str | bytes, int, Says]] = [
    # suffix and text of the file of `record wandb`, exit code
    ("csv", "", 1, "is empty"),
    ("csv", "\n", 1, "neither epochs"),
    ("csv", "a,b\n1,2\n", 1, "neither epochs"),
    ("csv", "epoch,val_accuracy\n1,80\n", 1, "80"),
    ("csv", "epoch,val_accuracy\n-5,0.5\n-4,0.6\n", 1, "epoch"),
    ("csv", "epoch,val_accuracy\n1e308,0.5\n", 1, "epoch"),
    ("csv", "epoch,test_accuracy\n1,7\n", 1, "7"),
    ("csv", "Step,r1 - val_acc,r2 - val_acc\n0,0.5,0.6\n", 2, ("2 runs", "--run 'r1'")),
    ("csv", "Step,Group: x - val_acc\n0,0.5\n", 2, "Group: x"),
    ("csv", "x" * 200_000, 1, "field larger"),
    ("csv", b"\xff\xff", 1, "UTF-8"),
    ("json", "", 1, "is empty"),
    ("json", "{", 1, "JSON"),
    ("json", "3", 1, "no JSON objects"),
    ("json", "[]", 1, "no JSON objects"),
    ("json", "[1]", 1, "no JSON objects"),
    ("json", "{}", 1, "neither epochs"),
    ("json", '{"a": 1}\n{"b"', 1, "JSON"),
    ("json", "[" * 100_000, 1, "JSON"),
    ("json", '{"val_accuracy": 80}', 1, "80"),
    ("json", '{"val_accuracy": ' + "9" * 5000 + "}", 1, "JSON"),
    ("json", '{"test_acc": 1.01}', 1, "1.01"),
    ("json", '[{"Name": "a", "test_acc": 1}, {"Name": "b", "test_acc": 1}]', 2, "2 runs"),
    ("json", '{"epoch": {"0": 1}, "val_acc": [5]}', 1, "5"),
    ("json", b"\xff\xff", 1, "JSON"),
]

TRAINER_STATES: list[tuple[str | bytes, Says]] = [
    # text of the file of `record huggingface`; the exit code is 1
    ("", "is empty"),
    ("{}", "log_history"),
    ("[{}]", "log_history"),
    ('{"log_history": 3}', "log_history"),
    ('{"log_history": {}}', "log_history"),
    ('{"log_history": []}', "neither epochs"),
    ('{"log_history": [1, null]}', "neither epochs"),
    ('{"log_history": [{"epoch": 1, "eval_accuracy": 60}]}', "60"),
    ('{"log_history": [{"epoch": 1e999, "eval_accuracy": 0.5}]}', "neither epochs"),
    ('{"log_history": [{"test_accuracy": 2}]}', "2"),
    ('{"log_history": [{"epoch": 1, "loss": {}}]', "JSON"),
    ('{"log_history": ' + "[" * 100_000, "JSON"),
    (b"PK\x03\x04\xff", "JSON"),
]


def parameters(text: str) -> str:
    """Return a sweep file with these parameters."""
    return f"method: random\nrun_cap: 2\nmetric: {{name: val_accuracy, goal: maximize}}\nparameters: {text}\n"


SWEEPS: list[tuple[str, Says]] = [
    # text of the file of `sweep create`; the exit code is 2
    ("- a", "list"),
    ("method: random", "parameters"),
    ("method: best\nparameters: {lr: {value: 1}}", "best"),
    ("method: [grid]\nparameters: {lr: {value: 1}}", "method"),
    ("methd: grid\nparameters: {lr: {value: 1}}", ("methd", "method")),
    ("method: random\nmetric: accuracy\nparameters: {lr: {values: [1]}}", "metric"),
    ("method: random\nmetric: {name: accuracy}\nparameters: {lr: {values: [1]}}", "accuracy"),
    ("method: random\nmetric: {name: val_accuracy, goal: up}\nparameters: {lr: {values: [1]}}", "up"),
    ("method: random\nrun_cap: 0\nparameters: {lr: {values: [1]}}", "run_cap"),
    ("method: random\nrun_cap: many\nparameters: {lr: {values: [1]}}", "many"),
    ("method: random\nrun_cap: .inf\nparameters: {lr: {values: [1]}}", "run_cap"),
    ("method: random\nearly_terminate: {type: median}\nparameters: {lr: {values: [1]}}", "median"),
    ("method: random\nearly_terminate: {type: hyperband, eta: 0}\nparameters: {lr: {values: [1]}}", "eta"),
    ("method: random\nearly_terminate: hyperband\nparameters: {lr: {values: [1]}}", "early_terminate"),
    ("method: grid\nparameters: {lr: {min: 0.1, max: 0.2}}", "grid"),
    ("command: [sh, -c, id]\nmethod: random\nparameters: {lr: {min: 0.1, max: 0.2}}\nprogrm: x", "progrm"),
    (parameters("[]"), "parameters"),
    (parameters("{}"), "parameters"),
    (parameters("{lr: 3}"), ("lr", "3")),
    (parameters("{lr: {}}"), ("lr", "value")),
    (parameters("{lr: null}"), "lr"),
    (parameters("{lr: {value: 0}}"), ("lr", "0")),
    (parameters("{lr: {values: []}}"), "lr"),
    (parameters("{lr: {values: 3}}"), "lr"),
    (parameters("{lr: {values: [[1]]}}"), "[1]"),
    (parameters("{lr: {values: [{a: 1}]}}"), "{'a': 1}"),
    (parameters("{lr: {values: [0.1, fast]}}"), "fast"),
    (parameters("{lr: {value: 1, values: [1]}}"), "needs one of"),
    (parameters("{lr: {min: 1}}"), "needs one of"),
    (parameters("{lr: {min: 2, max: 1}}"), ("2", "1")),
    (parameters("{lr: {min: 1, max: 1}}"), "min must be below max"),
    (parameters("{lr: {min: a, max: 1}}"), "'a'"),
    (parameters("{lr: {min: true, max: 1}}"), "True"),
    (parameters("{lr: {min: .nan, max: 1}}"), "nan"),
    (parameters("{lr: {min: 0, max: .inf}}"), "inf"),
    (parameters("{lr: {min: 0, max: " + "9" * 400 + "}}"), "99999"),
    (parameters("{lr: {min: -1e308, max: 1e308}}"), "1e+308"),
    (parameters("{lr: {distribution: normal, mu: 0, sigma: 1}}"), "normal"),
    (parameters("{lr: {distribution: log_unifrom, min: 0, max: 1}}"), ("log_unifrom", "log_uniform")),
    (parameters("{lr: {distribution: [uniform], min: 0, max: 1}}"), "uniform"),
    (parameters("{lr: {distribution: log_uniform, min: 0.0001, max: 0.1}}"), "log_uniform_values"),
    (parameters("{lr: {distribution: log_uniform, min: 1, max: 100000}}"), "100000"),
    (parameters("{lr: {distribution: log_uniform_values, min: 0, max: 1}}"), "above 0"),
    (parameters("{lr: {distribution: int_uniform, min: 0.5, max: 2}}"), "0.5"),
    (parameters("{lr: {distribution: q_uniform, min: 0, max: 1, q: 0}}"), "q"),
    (parameters("{lr: {min: 0, max: 1, q: 0.1}}"), "q_uniform"),
    (parameters("{lr: {distribution: uniform, values: [1, 2]}}"), "uniform"),
    (parameters("{lr: {distribution: constant, min: 0, max: 1}}"), "constant"),
    (parameters("{lr: {values: [1, 2], probabilities: [0.5, 0.5]}}"), "probabilities"),
    (parameters("{lr: {valeus: [1, 2]}}"), ("valeus", "values")),
    (parameters("{lrr: {values: [1, 2]}}"), ("lrr", "lr")),
    (parameters("{optm.lr: {values: [1, 2]}}"), ("optm", "optim")),
    (parameters("{optim: {parameters: 3}}"), "optim"),
    (parameters("{optim: {parameters: {lrr: {values: [1]}}}}"), "lrr"),
    (parameters("{'': {values: [1]}}"), "''"),
    (parameters("{mode: {values: [head, hed]}}"), "hed"),
    (parameters("{mode: {value: head}, unfreeze_from: {values: [layer4]}}"), "unfreeze_from"),
    (parameters("{unfreeze_from: {values: [layer9]}, mode: {values: [partial]}}"), "layer9"),
    (parameters("{epochs: {min: 1, max: 1000000}}"), "1000000"),
    (parameters("{epochs: {min: 1, max: 2.5}}"), "epochs"),
    (parameters("{backbone: {values: [resnet5]}}"), "resnet5"),
    (parameters("{lr: {values: [" + ", ".join(map(str, range(1, 3000))) + "]}}"), "2,999"),
    (parameters("{lr: &a {values: [1], more: *a}}"), "contains itself"),
    (parameters("{lr: {values: [!!python/name:os.system '']}}"), "python"),
]


class Breaker:
    """What `torch.save` writes for an object: a pickle that names code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def _tensor(**options: Any) -> torch.Tensor:
    return torch.zeros(2, 2, **options)


WEIGHTS: list[tuple[str, Any, Says]] = [
    # suffix, content of the file of --weights (bytes, or an object for torch.save); the exit code is 1
    ("pth", b"", "weights.pth"),
    ("pth", b"text", "damaged"),
    ("pth", b"PK\x03\x04 not a zip", "weights.pth"),
    ("pth", b"\x80\x02]q\x00.", "weights.pth"),
    ("pth", b"cos\nsystem\n(S'touch executed'\ntR.", "never loaded"),
    ("pth", b"\x80\x04\x95" + b"\xff" * 20, "weights.pth"),
    ("pth", Breaker(), "never loaded"),
    ("pth", {"state_dict": Breaker()}, "never loaded"),
    ("pth", 3, "state dict"),
    ("pth", [], "state dict"),
    ("pth", {}, "state dict"),
    ("pth", {"state_dict": {}}, "state dict"),
    ("pth", {"model": {"a": 1}}, "state dict"),
    ("pth", {1: 2}, "state dict"),
    ("pth", {"conv1.weight": _tensor(device="meta")}, "meta"),
    ("pth", {"conv1.weight": _tensor().to_sparse()}, "sparse"),
    ("pth", {"conv1.weight": _tensor(dtype=torch.complex64)}, "complex"),
    ("pth", lambda: {"conv1.weight": torch.quantize_per_tensor(torch.zeros(2, 2), 1, 0, torch.qint8)}, "quantized"),
    ("pth", {"conv1.weight": _tensor()}, "99 missing"),
    ("pth", {"unknown.weight": _tensor()}, "weights.pth"),
    ("safetensors", b"", "weights.safetensors"),
    ("safetensors", b"\xff" * 20, "weights.safetensors"),
    ("safetensors", b"\x02" + b"\0" * 7 + b"{}", "state dict"),
    ("safetensors", b"\x10" + b"\0" * 7 + b"{}", "weights.safetensors"),
    ("safetensors", b"\x0a" + b"\0" * 7 + b"[[[[[[[[[[", "weights.safetensors"),
    ("onnx", b"\x08\x07", "weights.onnx"),
    ("h5", b"\x89HDF\r\n", "weights.h5"),
]


def metadata(**changes: Any) -> Callable[[dict[str, Any], dict[str, str]], None]:
    """Return a function that changes the metadata of a model.safetensors; `...` removes a key."""

    def change(_: dict[str, Any], found: dict[str, str]) -> None:
        for key, value in changes.items():
            if value is ...:
                del found[key]
            else:
                found[key] = value if isinstance(value, str) else json.dumps({**json.loads(found[key]), **value})

    return change


def tensors(change: Callable[[dict[str, Any], str], None]) -> Callable[[dict[str, Any], dict[str, str]], None]:
    """Return a function that changes the first tensor with two or more dimensions in a model.safetensors."""
    return lambda state, _: change(state, next(name for name in state if state[name].ndim > 1))


MODELS: list[tuple[Any, Says]] = [
    # content of model.safetensors, or a change of a valid one; the exit code of `predict` is 1
    (b"", "model.safetensors"),
    (b"\0" * 8, "model.safetensors"),
    (b"\x80\x02]q\x00.", "model.safetensors"),
    (metadata(model=...), "model"),
    (metadata(model="x"), "model"),
    (metadata(model="[]"), "model"),
    (metadata(model="[" * 10_000), "model"),
    (metadata(model={"backbone": 3}), "backbone"),
    (metadata(model={"backbone": "resnet5"}), "resnet5"),
    (metadata(model={"dropout": 2}), "dropout"),
    (metadata(model={"unknown": 2}), "unknown"),
    (metadata(preprocess=...), "preprocess"),
    (metadata(preprocess="{"), "preprocess: invalid JSON"),
    (metadata(preprocess={"image_size": 0}), "image_size"),
    (metadata(preprocess={"image_size": 10**9}), "image_size"),
    (metadata(preprocess={"eval_image_size": -1}), "eval_image_size"),
    (metadata(preprocess={"mean": [0.5]}), "mean"),
    (metadata(preprocess={"mean": ["x", 0, 0]}), "mean"),
    (metadata(preprocess={"mean": [float("nan"), 0, 0]}), "mean"),
    (metadata(preprocess={"std": [0, 0, 0]}), "std"),
    (metadata(preprocess={"resize": "stretch"}), "stretch"),
    (metadata(preprocess={"interpolation": "x"}), "interpolation"),
    (metadata(classes=...), "classes"),
    (metadata(classes="3"), "classes"),
    (metadata(classes="null"), "classes"),
    (metadata(classes='"abc"'), "classes"),
    (metadata(classes='{"a": 1}'), "classes"),
    (metadata(classes="[1, 2, 3]"), "classes"),
    (metadata(classes='["a", "a", "b"]'), "classes"),
    (metadata(classes="[]"), "classes"),
    (metadata(classes='["a", "b"]'), "model.safetensors"),
    (metadata(classes="[" * 100_000), "classes"),
    (tensors(lambda state, name: state.pop(name)), "model.safetensors"),
    (tensors(lambda state, name: state.update(extra=torch.zeros(1))), "extra"),
    (tensors(lambda state, name: state.update({name: torch.zeros(3)})), "model.safetensors"),
    (tensors(lambda state, name: state.update({name: state[name].to(torch.int8)})), "int8"),
    (tensors(lambda state, name: state.update({name: state[name] * float("nan")})), "not finite"),
]


def content(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that replaces the value at a path such as `stop.best` in a checkpoint; `...` removes it."""

    def change(found: dict[str, Any]) -> None:
        *sections, last = path.split(".")
        inner = reduce(lambda here, key: here[key], sections, found)
        if value is ...:
            del inner[last]
        else:
            inner[last] = value

    return change


CHECKPOINTS: list[Any] = [
    # content of resume.pt, or a change of a valid one; the exit code of `train --resume` is 1
    b"",
    b"text",
    b"PK\x03\x04",
    b"cos\nsystem\n(S'touch executed'\ntR.",
    [],
    {},
    Breaker(),
    *(
        content(key, ...)
        for key in ("version", "identity", "epoch", "steps", "weights", "average", "optimizer", "history", "stop")
    ),
    *(content(key, ...) for key in ("best", "best_epoch", "best_logits", "stopped", "stop.best", "stop.waited")),
    *(content("epoch", value) for value in (0, -1, 99, "1", None, 1.5)),
    *(content("steps", value) for value in ("x", None, -1)),
    *(content("weights", value) for value in (None, [], {}, {"x": torch.zeros(1)}, {"x": 1})),
    *(content("average", value) for value in (None, 3, {"x": 1})),
    *(content("optimizer", value) for value in (None, {}, {"state": {}, "param_groups": []}, [1])),
    *(content("history", value) for value in (None, 3, [], [{}], [{"epoch": 0}], ["x"], [{"epoch": 1}] * 3)),
    *(content("stop", value) for value in (None, [], {"best": 3, "waited": 0})),
    *(content("stop.best", value) for value in (["a", "b"], [1.0], None)),
    *(content("stop.waited", value) for value in ("x", None, -1)),
    *(content("best", value) for value in (None, [], {}, {"x": torch.zeros(1)})),
    *(content("best_epoch", value) for value in (0, 5, "1", None)),
    *(content("best_logits", value) for value in (None, [1.0], torch.zeros(1), torch.zeros(2, 7))),
    content("stopped", 3),
]


@cases(COMMAND_LINES)
def test_command_line(case: tuple[str, int, Says], refused, images: Path, manifest_file: Path) -> None:
    words, code, says = case
    Path("empty").mkdir()
    Path("runs").mkdir()
    write(Path("file.txt"), "text\n")
    Path("photos").symlink_to(images)
    refused(shlex.split(words.replace("{manifest}", str(manifest_file))), code, says)


@cases(SETTINGS)
def test_setting(case: tuple[str, Says], refused) -> None:
    setting, says = case
    first, *more = setting.split(" --set ")
    words = [word for text in (first, *more) for word in ("--set", text)]
    refused(["train", "--show-config", *words], 2, says)


@cases(CONFIGS)
def test_config(case: tuple[str | bytes, Says], refused) -> None:
    write(Path("config.yaml"), case[0])
    refused(["train", "--config", "config.yaml", "--show-config"], 2, case[1])


@cases(MANIFESTS)
def test_manifest(case: tuple[Any, int, Says], refused) -> None:
    change, code, says = case
    if not isinstance(change, bytes):
        change = manifest_bytes(change)
    write(Path("photos.csv"), change)
    refused(["split", "--check", "photos.csv"], code, says)


def manifest_bytes(change: Any) -> bytes:
    rows = change if isinstance(change, list) else PLAIN_ROWS
    text = "".join(",".join(row) + "\n" for row in (["path", "label", "subset", "sha256", "group"], *rows)).encode()
    plain = {
        "schema": 1,
        "root": "photos",
        "classes": ["a", "b"],
        "seed": 0,
        "fingerprint": hashlib.sha256(text).hexdigest(),
        "left_out": [],
    }
    about = change(plain) if callable(change) else plain
    return b"# inat-ft manifest " + json.dumps(about).encode() + b"\n" + text


@cases(RECORDS)
def test_record(case: tuple[Any, Says], refused) -> None:
    change, says = case
    if isinstance(change, dict):
        change = json.dumps({key: value for key, value in (RECORD | change).items() if value is not ...})
    write(Path("record.json"), change)
    write(Path("other.json"), json.dumps(RECORD))
    refused(["compare", "record.json", "other.json"], 1, says)


@cases(PREDICTIONS)
def test_predictions(case: tuple[str | bytes, Says], refused) -> None:
    write(Path("theirs.csv"), case[0])
    refused(["record", "new", "theirs.csv", "--name", "theirs", "--out", "theirs.json"], 1, case[1])


@cases(WANDB)
def test_wandb_export(case: tuple[str, str | bytes, int, Says], refused) -> None:
    suffix, text, code, says = case
    write(Path(f"export.{suffix}"), text)
    refused(["record", "wandb", f"export.{suffix}", "--name", "theirs", "--out", "theirs.json"], code, says)


@cases(TRAINER_STATES)
def test_trainer_state(case: tuple[str | bytes, Says], refused) -> None:
    write(Path("state.json"), case[0])
    refused(["record", "huggingface", "state.json", "--name", "theirs", "--out", "theirs.json"], 1, case[1])


@cases(SWEEPS)
def test_sweep_file(case: tuple[str, Says], refused, manifest_file: Path) -> None:
    write(Path("sweep.yaml"), case[0])
    refused(["sweep", "create", "sweep.yaml", "--set", f"data.split={manifest_file}"], 2, case[1])


@pytest.mark.filterwarnings("ignore:.*quantize")
@cases(WEIGHTS)
def test_weights(case: tuple[str, Any, Says], refused, manifest_file: Path) -> None:
    suffix, content, says = case
    file = Path(f"weights.{suffix}")
    if isinstance(content, bytes):
        write(file, content)
    else:
        torch.save(content() if callable(content) else content, file)
    words = ["--weights", str(file), "--split", str(manifest_file), "--image-size", "32", "--device", "cpu"]
    refused(["train", "--backbone", "resnet18", *words], 1, says)
    assert not Path("executed").exists()


@cases(MODELS)
def test_model(case: tuple[Any, Says], refused, trained: Path, images: Path) -> None:
    change, says = case
    file = Path("model.safetensors")
    if isinstance(change, bytes):
        write(file, change)
    else:
        state = load_file(trained / file)
        with safe_open(trained / file, "pt") as opened:
            found = dict(opened.metadata())
        change(state, found)
        save_file(state, file, found)
    refused(["predict", str(file), str(images / "class0" / "000.png"), "--device", "cpu"], 1, says)


@pytest.fixture(scope="session")
def setup(trained: Path) -> Setup:
    """The network and the plan of the trained run."""
    return prepare(load_config(trained / "config.yaml"))


@cases(CHECKPOINTS)
def test_checkpoint(case: Any, trained: Path, setup: Setup) -> None:
    file = write_checkpoint(Path("resume.pt"), case, trained)
    identity = torch.load(trained / "resume.pt", weights_only=True)["identity"]
    shape = len(setup.manifest.rows("val")), len(setup.manifest.classes)
    with pytest.raises(CheckpointError, match=r"resume\.pt") as caught:
        load_checkpoint(file, TrainState(EarlyStopping(3)), setup.plan, setup.config.optim, identity, shape)
    assert caught.value.hint and caught.value.exit_code == 1
    assert not Path("executed").exists()


@cases(CHECKPOINTS[::8])
def test_resumed_run(case: Any, refused, trained: Path) -> None:
    shutil.copytree(trained, "run", ignore=shutil.ignore_patterns("record.json"))
    write_checkpoint(Path("run/resume.pt"), case, trained)
    refused(["train", "--resume", "run"], 1, "run/resume.pt")
    assert not Path("executed").exists()


def write_checkpoint(file: Path, case: Any, trained: Path) -> Path:
    if isinstance(case, bytes):
        return write(file, case)
    found = case
    if callable(case):
        found = torch.load(trained / "resume.pt", weights_only=True)
        case(found)
    torch.save(found, file)
    return file
