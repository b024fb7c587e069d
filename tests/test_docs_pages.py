"""The commands and Python blocks of README.md, of the reference pages and of the plugin pages run, on small images.

`tests/test_docs_run.py` runs those of the tutorial, the how-to guides and the explanations.
"""

import ast
import inspect
import re
import shlex
import shutil
import sys
import threading
import tomllib
from collections.abc import Callable
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from inat_ft_demo import story

import inat_ft
from inat_ft import registry
from tests import test_docs_run
from tests.cli.test_fetch import nature
from tests.conftest import make_images
from tests.data.serving import serving
from tests.integration.test_plugin_source import write_annotations
from tests.integration.test_plugins import register
from tests.test_docs import PAGES, ROOT, command_lines
from tests.test_docs_run import small
from tools import site

weights = test_docs_run.weights

GENERATED = {"cli.md", "reference/configuration.md", "reference/record.md"}
"""Pages that `make generate` writes from the code."""
NOT_RUN = {
    r"train .*--(wandb|tracker) (online|wandb|webhook|mlflow)": "a server: tests/tracking, tests/integration",
    r"sweep \w+ .*(--storage|--backend wandb|ID)": "a server: tests/sweeps, tests/tracking",
    r"sweep status --watch": "it waits: tests/sweeps",
    r"(split|train|compare) .*(data/digits|efficientnet_lite0|part-b/record)": "the demo runs it",
    r"tune ": "it takes minutes: tests/tune",
    r"\w+ .*(timm:vit|tensorboard|trackio)": "an extra: tests/models, tests/tracking",
    r"fetch digits": "tests/data",
}
"""Commands that are not run here, with where they are."""
ELSEWHERE = {"tutorial.md", "distributed.md", "benchmarks.md", "tune.md"}
"""Pages without commands for a small machine: torchrun and SLURM, benchmarks, and minutes of search."""
PLUGIN_PAGES = sorted(page.stem for page in (ROOT / "docs" / "plugins").glob("*.md") if page.stem != "index")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT / "docs").as_posix() if page.is_relative_to(ROOT / "docs") else page.name


def blocks(page: Path) -> list[str]:
    return [code for language, code in site.code_blocks(page.read_text()) if language == "python"]


HERE = [
    page
    for page in PAGES
    if (command_lines(page) or blocks(page))
    and not name_of(page).startswith(("how-to/", "explanation/", "plugins/"))
    and name_of(page) not in GENERATED | ELSEWHERE
]


def example(page: str) -> Path:
    """Return the folder of the example package of a page in docs/plugins."""
    name = {"strategies": "strategy", "sweep-backends": "sweep_backend"}.get(page, page.removesuffix("s"))
    return ROOT / "examples" / "plugins" / name


def test_the_module_on_a_plugin_page_is_that_of_the_example_package() -> None:
    for page in PLUGIN_PAGES:
        (module,) = example(page).glob("*.py")
        code = ast.parse(module.read_text())
        del code.body[0]  # the docstring of the module, which the page leaves out
        shown = [ast.unparse(ast.parse(block)) for block in blocks(ROOT / "docs" / "plugins" / f"{page}.md")]
        assert ast.unparse(code) in shown, page


def test_the_console_of_the_readme_shows_commands_of_the_demo() -> None:
    shown = re.findall(r"(?m)^ *\$ inat-ft (.*)$", (ROOT / "README.md").read_text())
    assert shown and set(shown) <= {
        command.line for chapter in story.chapters(story.PACKAGED) for command in chapter.commands
    }


def test_every_guide_and_explanation_is_run() -> None:
    run = inspect.getsource(test_docs_run)
    for page in (page for folder in ("how-to", "explanation") for page in (ROOT / "docs" / folder).glob("*.md")):
        name = name_of(page)
        has_code = command_lines(page) or blocks(page)
        is_exempt = name in ("how-to/wandb.md", "how-to/trackers.md", "how-to/windows.md")  # servers, extras
        assert name in run or not has_code or is_exempt, name


@pytest.fixture(scope="session")
def worlds(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A function that returns a folder with the photographs, split and runs that the pages assume."""

    @cache
    def world(grouped: bool) -> Path:
        folder = tmp_path_factory.mktemp("world")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setenv("INAT_FT_CACHE_DIR", str(folder / "cache"))
            _write_files(weights)
            inat_ft.split("photos", group_by="sequences.csv" if grouped else None, out="splits/photos.csv")
            tiny = {"image_size": 32, "epochs": 1, "device": "cpu", "split": "splits/photos.csv"}
            seeds = {"resnet50-head-1": 0, "a": 0, "b": 1, "c": 2}
            for name, seed in seeds.items():
                run = inat_ft.train(backbone="resnet18", weights=str(weights), name=name, seed=seed, **tiny)
                inat_ft.evaluate(run)
            inat_ft.evaluate(inat_ft.train(backbone="cnn", name="cnn-full-1", settings={"model.filters": 16}, **tiny))
        return folder

    return world


def _write_files(weights: Path) -> None:
    make_images(Path("photos"), each=48)
    Path("photos/class0").rename("photos/fox")
    make_images(Path("new-photos"), classes=2, each=3, seed=1)
    shutil.copy("photos/fox/000.png", "photo.jpg")
    shutil.copy(weights, "checkpoint.pth")
    files = sorted(file.relative_to("photos").as_posix() for file in Path("photos").rglob("*.png"))
    pairs = [f"{file},{Path(file).parent.name}{int(Path(file).stem) // 2}" for file in files]
    Path("sequences.csv").write_text("\n".join(["path,group", *pairs]) + "\n")
    Path("taxa.csv").write_text("label,genus,family\nfox,Vulpes,Canidae\nclass1,Canis,Canidae\nclass2,Lynx,Felidae\n")
    Path("sweep.yaml").write_text(
        "method: grid\nparameters: {lr: {values: [1e-3, 1e-4]}, dropout: {values: [0, 0.3]}}\n"
    )


@pytest.fixture
def here(worlds: Callable[[bool], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the world in the working folder; only one page assumes a split with groups."""
    page = request.node.callspec.params.get("page")
    shutil.copytree(worlds(page is not None and page.name == "evaluation.md"), tmp_path, dirs_exist_ok=True)
    return tmp_path


def before(line: str) -> None:
    """Prepare what a command needs that those before it do not leave."""
    if line.startswith("sweep create"):
        shutil.rmtree("sweeps", ignore_errors=True)  # with one sweep, its name is optional
    if line.startswith("record new predictions.csv"):
        shutil.copy("runs/cnn-full-1/predictions-test.csv", "predictions.csv")
    if "runs/resnet50-partial-1" in line and not Path("runs/resnet50-partial-1").exists():
        Path("runs/resnet18-partial-1").rename("runs/resnet50-partial-1")
    if line.startswith("train --resume"):
        Path(shlex.split(line)[2], "record.json").unlink()
    if " --name " in line and line.startswith("train"):
        shutil.rmtree(Path("runs", shlex.split(line)[-1]), ignore_errors=True)


def run_commands(page: Path, cli: Any, weights: Path) -> None:
    for line in command_lines(page):
        if not any(re.match(pattern, line) for pattern in NOT_RUN):
            before(line)
            words = small(shlex.split(line), weights)
            if line.startswith("runs delete"):
                words.append("--yes")
            if "little" in words:  # the backbone of the page, not the small one
                words = [*shlex.split(line), "--epochs", 1, "--image-size", 32, "--device", "cpu"]
            ran = cli(*words)
            assert ran.code == 0, f"{page.name}: inat-ft {line}\n{ran.out}{ran.err}"


@pytest.mark.slow
@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_the_commands_of_a_page_run(page: Path, here: Path, cli, weights: Path) -> None:
    if page.name in ("README.md", "fetch.md"):
        with serving(nature()) as server:
            assert cli("fetch", "inat12k", "--to", "data/", "--url", server.url).code == 0
    run_commands(page, lambda *words: cli(*words) if words[:2] != ("fetch", "inat12k") else cli("cache"), weights)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in HERE if blocks(page) and page.name != "insights.md"], ids=name_of)
def test_the_python_blocks_of_a_page_run(
    page: Path, here: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = inat_ft.train
    tiny = {"image_size": 32, "epochs": 1, "device": "cpu", "backbone": "resnet18", "weights": str(weights)}

    def train_small(**options: Any) -> Any:
        split = {"split": "splits/photos.csv"} if options.get("split") == "splits/digits.csv" else {}
        return train(**{**options, **tiny, **split})

    monkeypatch.setattr(inat_ft, "train", train_small)
    keys = {"data.split": "splits/photos.csv", "model.backbone": "resnet18", "model.weights": str(weights)}
    settings = str([*{**keys, "data.image_size": 32, "compute.device": "cpu"}.items()])
    names: dict[str, Any] = {"inat_ft": inat_ft, "run": "runs/a"}
    for code in blocks(page):
        exec(code.replace('[("data.split", "splits/photos.csv")]', settings), names)


class Receiver(BaseHTTPRequestHandler):
    """Accepts what the example tracker posts."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGIN_PAGES)
def test_the_blocks_and_commands_of_a_plugin_page_run(
    name: str, here: Path, cli, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    installed = tmp_path_factory.mktemp("site")
    package = tomllib.loads((example(name) / "pyproject.toml").read_text())["project"]
    ((group, entries),) = package["entry-points"].items()
    lines = [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    register(installed, package["name"], "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.syspath_prepend(str(example(name)))
    registry.all_plugins.cache_clear()
    write_annotations(Path())
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = ROOT / "docs" / "plugins" / f"{name}.md"
    try:
        run_commands(page, cli, weights)
        names: dict[str, Any] = {}
        for code in blocks(page):
            exec(code.replace("localhost:8000", f"127.0.0.1:{server.server_port}"), names)
            if check := names.pop("test_contract", None):
                check(*[here for _ in inspect.signature(check).parameters])
    finally:
        server.shutdown()
        server.server_close()
        registry.all_plugins.cache_clear()
        for module in example(name).glob("*.py"):
            sys.modules.pop(module.stem, None)
