import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inat_ft

PACKAGE = Path(inat_ft.__file__).parent
MODULES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "plugins").rglob("*.py")])
MAX_PACKAGE_LINES = 13_600
MAX_MODULE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 300, 50, 8
HEAVY = ("torch", "torchvision", "wandb", "sklearn", "matplotlib", "scipy", "optuna", "timm", "pandas")


def heavy_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.splitlines()[-1].split()) if ran.stdout.strip() else set()


@pytest.mark.parametrize(
    "module", ["inat_ft", "inat_ft.cli.main", "inat_ft.settings", "inat_ft.strategies", "inat_ft.records"]
)
def test_importing_is_light(module: str) -> None:
    assert heavy_after(f"import {module}") == set()


def test_help_and_configuration_errors_import_nothing_heavy() -> None:
    run = "import io, contextlib\nfrom inat_ft.cli.main import run\nsys.argv = {words!r}\n"
    run += "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
    run += "    try: run()\n    except SystemExit: pass"
    assert heavy_after(run.format(words=["inat-ft", "--help"])) == set()
    assert heavy_after(run.format(words=["inat-ft", "train", "--help"])) == set()
    assert heavy_after(run.format(words=["inat-ft", "train", "--set", "model.droput=0.3"])) == set()
    assert heavy_after(run.format(words=["inat-ft", "strategies"])) == set()


def test_comparing_records_needs_no_torch(tmp_path: Path) -> None:
    for name, share in (("a", 0.8), ("b", 0.7)):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}", "test_accuracy": {share}, "num_test": 100}}')
    run = "from pathlib import Path\nfrom inat_ft.evaluation.compare import compare\n"
    run += f"compare([Path({str(tmp_path / 'a.json')!r}), Path({str(tmp_path / 'b.json')!r})])"
    assert heavy_after(run) & {"torch", "torchvision", "wandb"} == set()


def test_imports_flow_one_way() -> None:
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout


def test_modules_and_functions_stay_small() -> None:
    complaints = []
    for file in MODULES:
        text = file.read_text()
        name = file.relative_to(PACKAGE.parent).as_posix()
        if text.count("\n") > MAX_MODULE_LINES:
            complaints.append(f"{name} has {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and not is_command(node, file):
                lines = node.end_lineno - node.lineno + 1
                parameters = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
                if lines > MAX_FUNCTION_LINES:
                    complaints.append(f"{name}: {node.name} has {lines} lines")
                if (
                    parameters - (node.args.args[:1] != [] and node.args.args[0].arg in ("self", "cls"))
                    > MAX_PARAMETERS
                ):
                    complaints.append(f"{name}: {node.name} has {parameters} parameters")
    assert not complaints, "\n".join(complaints)


def is_command(node: ast.FunctionDef, file: Path) -> bool:
    """Whether a function is a command, or a function of the public API that takes the same options."""
    of_commands = file.parent.name in ("cli", "api") or file.name in ("command.py", "api.py")
    return not node.name.startswith("_") and (of_commands or node.name in inat_ft.__all__)


def test_the_package_stays_small() -> None:
    assert sum(file.read_text().count("\n") for file in PACKAGE.rglob("*.py")) <= MAX_PACKAGE_LINES


def test_every_module_says_its_purpose() -> None:
    for file in MODULES:
        assert ast.get_docstring(ast.parse(file.read_text())), file
