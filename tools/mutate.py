"""Mutation testing of the modules that decide whether a result is correct.

    python -m tools.mutate [TARGET ...] [--sample 80] [--jobs 2]

A mutant is a module with one small change: another comparison or operator, a number plus one, a condition negated, a
statement removed. It is killed if a test fails. Messages, annotations and `strict=` are not changed. Each mutant runs in a
forked process that imports the package anew, after the libraries have been imported once. This needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[1]
TARGETS = {
    "split": ("inat_ft/data/split.py", ["tests/data/test_split_images.py", "tests/data/test_split.py"]),
    "stratify": ("inat_ft/data/stratify.py", ["tests/data/test_stratify.py"]),
    "freezing": ("inat_ft/models/net.py", ["tests/models/test_freezing.py"]),
    "stopping": ("inat_ft/engine/early_stopping.py", ["tests/engine/test_early_stopping.py"]),
    "significance": (
        "inat_ft/evaluation/pairwise.py",
        ["tests/evaluation/test_pairwise.py", "tests/evaluation/test_compare.py"],
    ),
    "checkpoint": ("inat_ft/engine/checkpoint.py", ["tests/engine/test_checkpoint.py"]),
    "selection": ("plugins/inat_ft_sweeps/selection.py", ["tests/sweeps/test_selection.py"]),
    "store": ("inat_ft/cache/array_store.py", ["tests/data/test_array_store.py"]),
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}
SKIPPED = {"annotation", "returns", "decorator_list", "type_comment"}
PLAIN = (ast.Name, ast.Attribute, ast.Call, ast.NamedExpr, ast.Subscript)
"""Conditions without an operator, which are negated."""


@dataclass(frozen=True)
class Mutant:
    """A change of one place of a syntax tree."""

    parent: ast.AST
    field: str
    place: int | None
    """Position if the field is a list."""
    new: ast.AST
    about: str

    def apply(self) -> None:
        if self.place is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.place] = self.new


def mutants(node: ast.AST) -> Iterator[Mutant]:
    """Yield the mutants of a syntax tree, without those of annotations, messages, decorators and `strict=`."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for place, old in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(old, ast.AST) or isinstance(old, ast.JoinedStr):
                continue
            if isinstance(old, ast.keyword) and old.arg == "strict":
                continue
            if isinstance(old, (ast.expr, ast.stmt)):
                for new in variants(old, field):
                    yield Mutant(node, field, place, ast.copy_location(new, old), _about(old, new))
            if not isinstance(old, ast.Raise):
                yield from mutants(old)


def _about(old: ast.expr | ast.stmt, new: ast.AST) -> str:
    texts = (ast.unparse(ast.fix_missing_locations(each)).replace("\n", " ")[:90] for each in (old, new))
    return f"line {old.lineno}: {'  ->  '.join(texts)}"


def variants(node: ast.expr | ast.stmt, field: str) -> Iterator[ast.AST]:
    """Yield what a node of a field of its parent is replaced with."""
    yield from expression_variants(node, field) if isinstance(node, ast.expr) else statement_variants(node)
    if field in ("test", "ifs") and isinstance(node, PLAIN):
        yield ast.UnaryOp(ast.Not(), node)


def expression_variants(node: ast.expr, field: str) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[operator, *others]):
            for other in COMPARISONS[type(operator)]:
                yield ast.Compare(node.left, [other(), *others], node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp():
            yield node.operand
        case ast.BinOp() if type(node.op) in OPERATORS:
            yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.Name(id=name) if field == "func" and name in OPPOSITES:
            yield ast.Name(OPPOSITES[name], ast.Load())
        case ast.Attribute(attr=name) if field == "func" and name in OPPOSITES:
            yield ast.Attribute(node.value, OPPOSITES[name], ast.Load())


def statement_variants(node: ast.stmt) -> Iterator[ast.AST]:
    match node:
        case ast.AugAssign() if type(node.op) in OPERATORS:
            yield ast.AugAssign(node.target, OPERATORS[type(node.op)](), node.value)
            yield ast.Pass()
        case ast.Raise() | ast.Continue() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
            yield ast.Pass()
        case ast.Return(value=ast.expr()) if not isinstance(node.value, ast.Constant):
            yield ast.Return(ast.Constant(None))


class Mutated(SourceFileLoader):
    """Loads a module from changed code instead of its file."""

    def __init__(self, name: str, file: Path, code: CodeType) -> None:
        super().__init__(name, str(file))
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None


def run_tests(tests: Sequence[str], folder: Path) -> int:
    """Run tests until one fails; return the exit code of pytest. The process must not have imported the package."""
    os.environ.update(
        OMP_NUM_THREADS="1", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", HYPOTHESIS_STORAGE_DIRECTORY=str(folder / "hypothesis")
    )
    import pytest

    options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--basetemp", str(folder / "tests")]
    return int(pytest.main([*options, *tests]))


def fork(folder: Path, tests: Sequence[str], file: Path, tree: ast.Module | None) -> int:
    """Start the tests in a process of its own, with a changed module if a tree is given; return its ID."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        with (folder / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if tree is not None:
            parts = file.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[1:] if parts[0] == "plugins" else parts)
            compiled = compile(ast.fix_missing_locations(tree), str(file), "exec")
            sys.meta_path.insert(0, Mutated(name, file, compiled))
        code = run_tests(tests, folder)
        if tree is None:
            (folder / "modules.json").write_text(json.dumps(sorted(sys.modules)))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def preload(modules: Sequence[str]) -> None:
    """Import the libraries that the tests use, but nothing of the package."""
    for name in modules:
        if not name.startswith(("inat_ft", "tests", "_pytest", "conftest", "__")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def check_target(name: str, sample: int, jobs: int) -> tuple[int, list[str]]:
    """Return how many mutants of a target were run, and the descriptions of those that survived."""
    file, tests = ROOT / TARGETS[name][0], TARGETS[name][1]
    source = file.read_text(encoding="utf-8")
    number = len(list(mutants(ast.parse(source))))
    chosen = sorted(random.Random(0).sample(range(number), min(sample or number, number)))
    survivors: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for _ in range(2):  # the second time with the libraries imported, for the time limit
            started = time.monotonic()
            _, status = os.waitpid(fork(folder, tests, file, None), 0)
            if status:
                raise SystemExit(f"the tests of {name} fail without a change:\n{(folder / 'log').read_text()[-3000:]}")
            seconds = time.monotonic() - started
            preload(json.loads((folder / "modules.json").read_text()))
        print(f"{name}: {len(chosen)} of {number} mutants, tests take {seconds:.1f} s", flush=True)
        running: dict[int, tuple[str, float, Path]] = {}
        while chosen or running:
            if chosen and len(running) < jobs:
                tree = ast.parse(source)
                mutant = list(mutants(tree))[place := chosen.pop(0)]
                mutant.apply()
                inside = folder / str(place)
                inside.mkdir()
                limit = time.monotonic() + 20 + 5 * jobs * seconds
                running[fork(inside, tests, file, tree)] = mutant.about, limit, inside
                continue
            time.sleep(0.02)
            for process, (about, limit, inside) in list(running.items()):
                done, status = os.waitpid(process, os.WNOHANG)
                if not done and time.monotonic() > limit:  # an endless loop: killed
                    os.killpg(process, signal.SIGKILL)
                    done, status = os.waitpid(process, 0)
                if done:
                    if status == 0:
                        survivors.append(about)
                        print(f"  survived: {about}", flush=True)
                    shutil.rmtree(inside, ignore_errors=True)
                    del running[process]
        return min(sample or number, number), survivors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], default=list(TARGETS))
    parser.add_argument("--sample", type=int, default=0, help="mutants of each target, chosen at random; 0 for all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    os.chdir(ROOT)
    rows = [(name, *check_target(name, chosen.sample, chosen.jobs)) for name in chosen.targets]
    for name, number, survivors in rows:
        print(f"{name:<14} {number:>4} mutants, {1 - len(survivors) / number:6.1%} killed")


if __name__ == "__main__":
    main()
