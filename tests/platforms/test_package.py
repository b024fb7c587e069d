"""What is published: wheel, sdist, container."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import inat_ft

ROOT = Path(inat_ft.__file__).parents[1]


def build(source: Path, target: Path, kind: str) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target), "--target", kind]
    ran = subprocess.run(command, cwd=source, capture_output=True, encoding="utf-8", check=False)
    assert ran.returncode == 0, ran.stderr
    return next(target.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def needed() -> set[str]:
    """Return the files of the packages, as the wheel names them."""
    found = set()
    for top in (ROOT, ROOT / "plugins"):
        for package in top.glob("inat_ft*"):
            files = (file for file in package.rglob("*") if file.is_file() and package.suffix != ".dist-info")
            found |= {file.relative_to(top).as_posix() for file in files if "__pycache__" not in file.parts}
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.mark.slow
def test_wheel_and_sdist_have_all_files_and_nothing_else(wheel: Path, tmp_path: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == needed()
    assert {"inat_ft/py.typed", "inat_ft_report/templates/compare.html"} <= names
    with tarfile.open(build(ROOT, tmp_path, "sdist")) as sdist:
        tops = {member.name.split("/")[1] for member in sdist}
        sdist.extractall(tmp_path / "source", filter="data")
    files = {"CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", ".gitignore"}
    assert tops == {"inat_ft", "plugins", *files}
    again = build(next((tmp_path / "source").iterdir()), tmp_path / "again", "wheel")
    assert {name for name in zipfile.ZipFile(again).namelist() if ".dist-info/" not in name} == names


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False, symlinks=os.name != "nt")
    python = next(tmp_path.glob("venv/*/python"))
    site = next(tmp_path.glob("venv/lib/python*/site-packages"))
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--force-reinstall", "--ignore-installed", str(wheel)], check=True, cwd=tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = "import inat_ft, inat_ft_sweeps; print(inat_ft.__file__, inat_ft_sweeps.__file__)"
    for words in (
        [python, "-c", where],
        [python.with_name("inat-ft"), "--help"],
        [python, "-m", "inat_ft", "sweep", "--help"],
        [python.with_name("inat-ft"), "doctor"],
    ):
        ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8", check=False)
        assert ran.returncode == 0, ran.stderr
        assert words[1] != "-c" or ran.stdout.count(str(site)) == 2


def container_steps() -> list[list[str]]:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def test_the_containers_are_complete() -> None:
    steps = container_steps()
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known and steps[0] == ["FROM", "python:3.12-slim"]
    assert ["RUN", "inat-ft doctor"] in steps and steps.index(["USER", "user"]) < steps.index(["RUN", "inat-ft doctor"])
    extras = re.search(r"/src\[([\w,]+)\]", " ".join(value for _, value in steps))
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert extras and all(f"\n{extra} = [" in pyproject for extra in extras[1].split(","))
    for name, value in steps:
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(value), list)
        elif name == "RUN":
            assert subprocess.run(["bash", "-n", "-c", value], check=False).returncode == 0
    about = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    folder = ROOT / ".devcontainer"
    assert (folder / about["build"]["dockerfile"]).resolve() == (ROOT / "Dockerfile").resolve()
    assert (folder / about["build"]["context"]).resolve() == ROOT.resolve()
    assert about["postCreateCommand"].startswith("make .venv/.ready ")
    assert ["USER", about["remoteUser"]] in steps


def test_every_user_of_the_container_can_write_to_the_home_and_the_cache_folder() -> None:
    steps = container_steps()
    variables = dict(word.split("=") for name, value in steps if name == "ENV" for word in value.split())
    writable = re.search(r"chmod 1777 ([\w/ ]+)", "\n".join(value for name, value in steps if name == "RUN"))
    assert writable and set(writable[1].split()) == {variables["HOME"], variables["XDG_CACHE_HOME"]}
    assert ["WORKDIR", variables["HOME"]] in steps
    page = (ROOT / "docs" / "how-to" / "containers.md").read_text(encoding="utf-8")
    assert re.findall(r"-v inat-ft-cache:(\S+)", page) == [variables["XDG_CACHE_HOME"]]
    arguments = {value.split("=")[0] for name, value in steps if name == "ARG"}
    assert set(re.findall(r"--build-arg (\w+)=", page)) == arguments


@pytest.mark.slow
def test_the_container_is_built_from_the_files_of_the_wheel(tmp_path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *patterns = [line for line in lines if not line.startswith("#")]
    assert first == "*"
    (tmp_path / "src").mkdir()
    for pattern in patterns:
        source = ROOT / pattern.removeprefix("!")
        if source.is_dir():
            shutil.copytree(source, tmp_path / "src" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif pattern.startswith("!"):
            shutil.copy(source, tmp_path / "src")
    names = zipfile.ZipFile(build(tmp_path / "src", tmp_path / "wheel", "wheel")).namelist()
    assert {name for name in names if ".dist-info/" not in name} == needed()


def test_make_test_extras_runs_every_test_that_other_targets_skip() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = re.search(r"(?m)^EXTRAS_TESTS := (.+)$", makefile)
    assert listed and all((ROOT / path).exists() for path in listed[1].split())
    tests = {
        file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in ROOT.glob("tests/**/test_*.py")
    }
    needed = re.compile(
        r'importorskip\("(mlflow|openvino|tensorboard|trackio|transformers)"|"(openvino|transformers)"[,}]'
    )
    skipped = [path for path, text in tests.items() if needed.search(text)]
    assert len(skipped) >= 5
    assert all(path.startswith(tuple(listed[1].split())) for path in skipped), skipped
    assert "make test-extras" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
