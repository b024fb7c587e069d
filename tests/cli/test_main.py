"""The shell around the commands: help, options that stand anywhere, exit codes, crash reports."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import typer

from inat_ft.cli import commands
from inat_ft.cli.main import app
from inat_ft.crash import redact, write_crash
from inat_ft.settings import ALIASES, config_flags, load_config
from tests.conftest import make_images

SMALL = ["--backbone", "cnn", "--image-size", "32", "--set", "model.filters=16", "--epochs", "1"]
BEYOND_TYPER = ("numpy", "torch", "yaml", "ctypes", "inat_ft.config", "inat_ft.settings", "inat_ft.records")


def loaded_by(*words: str) -> set[str]:
    """The modules that a command line imports, of itself and through Typer."""
    code = f"import sys\nsys.argv = ['inat-ft', *{words!r}]\nfrom inat_ft.cli.main import run\n"
    code += "try: run()\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.rsplit("MODULES", 1)[1].split())


def test_help_imports_nothing_beyond_typer() -> None:
    strip_metadata = (
        "import typer, sys\napp = typer.Typer(rich_markup_mode='rich')\n@app.command()\ndef a(x: int = 1): pass\n"
    )
    strip_metadata += "@app.callback()\ndef b(): pass\n"
    strip_metadata += "try: app(['--help'])\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    ran = subprocess.run([sys.executable, "-c", strip_metadata], capture_output=True, text=True, check=True)
    typers = set(ran.stdout.rsplit("MODULES", 1)[1].split())
    beyond = {name.partition(".")[0] for name in loaded_by("--help") - typers} - {"signal", "copy"}
    assert {name for name in beyond - set(sys.stdlib_module_names) if not name.startswith("inat_ft")} == set()
    assert not {name for name in loaded_by("--help") if name.startswith("inat_ft.cli.")} - {
        *(
            "inat_ft.cli.main",
            "inat_ft.cli.commands",
            "inat_ft.cli.render",
            "inat_ft.cli.options",
        )
    }
    assert not loaded_by("--help") & {"pydantic", *BEYOND_TYPER}
    assert not loaded_by("trian") & {*BEYOND_TYPER, "inat_ft.cli.train"}


@pytest.mark.parametrize("words", [("train", "--help"), ("train", "--epochs", "x"), ("train", "--epohs", "3")])
def test_help_and_usage_errors_of_a_command_import_no_library(words: tuple[str, ...]) -> None:
    modules = loaded_by(*words)
    assert not modules & set(BEYOND_TYPER)
    assert "inat_ft.cli.split" not in modules


def test_every_command_of_the_list_can_be_loaded(invoke) -> None:
    listed = invoke("--help").out
    for name, placeholder in commands.listed().items():
        assert f" {name} " in listed and placeholder.help
        assert commands.load(name).name == name


def all_commands() -> dict[str, object]:
    detail = {}
    for name in commands.listed():
        command = commands.load(name)
        inner = getattr(command, "commands", {})
        detail |= {f"{name} {each}": inner[each] for each in inner} or {name: command}
    return detail


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_help_shows_the_default_of_every_option(invoke, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERMINAL_WIDTH", "400")
    shown = invoke(*name.split(), "--help").out
    assert "\\[" not in shown and "<bool>" not in shown
    for option in all_commands()[name].params:
        line = next(
            (line for line in shown.splitlines() if re.search(rf"^│.* {re.escape(option.opts[0])}[ ,]", line)), ""
        )
        if "[default: " in (option.help or "") or option.show_default not in (True, False, None):
            assert "[default: " in line, option.name
        elif option.param_type_name == "option" and option.default not in (None, False, [], ()):
            assert "[default: " in line or option.name == "help", option.name


def test_paragraphs_of_help_are_wrapped_at_the_width_of_the_terminal(process) -> None:
    shown = process("learning-curve", "--help", TERMINAL_WIDTH="400").out
    lines = [line.strip() for line in shown.partition("Arguments")[0].splitlines() if line.strip()]
    text, *examples = lines[2:-1]  # after the usage and the summary
    assert "By default, fits heads to frozen features" in text and text.endswith("the same command continues.")
    assert len(examples) == 3 and all(line.startswith("inat-ft learning-curve") for line in examples)


def test_train_help_shows_the_defaults_of_the_configuration(process) -> None:
    shown = process("train", "--help", TERMINAL_WIDTH="400").out  # in its own process: Typer reads the width once
    config = load_config()
    for key, names, field in config_flags():
        line = re.search(rf"(?m)^│ {names[0]}[ ,].*", shown)
        assert line, key
        *sections, name = key.split(".")
        default = getattr(getattr(config, *sections) if sections else config, name)
        noted = re.search(r"\[default: (.*?)\]", line[0])
        if isinstance(default, bool):
            assert not noted and default is False, key
        elif isinstance(default, int | float):
            assert noted and float(noted[1]) == default, key
        elif default is not None:
            assert noted and noted[1].startswith(str(default)), key
        for choice in get_args(field.annotation) if get_origin(field.annotation) is Literal else ():
            assert re.search(rf"[\[|]{choice}[\]|]", line[0]), key


def test_every_flag_of_train_sets_its_key(invoke) -> None:
    given = {"lr": 0.5, "mode": "partial", "unfreeze_from": "layer4", "name": "x", "seed": 7, "compile": True}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)][:-1]
    shown = {line["key"]: line["value"] for line in invoke("train", *words, "--show-config", "--json").json}
    assert {name: shown[ALIASES[name]] for name in given} == {name: str(value) for name, value in given.items()}
    same = invoke("train", "--learning-rate", 0.5, "--root", "/images", "--show-config", "--json").json
    assert {"0.5", "/images"} <= {line["value"] for line in same if line["key"] in ("optim.lr", "data.root")}


def test_options_of_every_command_may_stand_anywhere(invoke) -> None:
    for words in (["-q", "sweep", "list"], ["sweep", "-q", "list"], ["sweep", "list", "--quiet"]):
        ran = invoke(*words)
        assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert "no sweeps in" in invoke("sweep", "list").err
    for words in (["--debug", "train"], ["train", "--debug"]):
        ran = invoke(*words)
        assert ran.code == 2 and "Traceback" in ran.err and "no manifest" in ran.err


@pytest.mark.parametrize("word", ["--debug", "-q", "--quiet"])
def test_the_value_of_an_option_is_not_taken_for_an_option(invoke, word: str) -> None:
    ran = invoke("train", "--name", word, "--show-config")
    assert ran.code == 2 and f"name: '{word}' is not allowed" in ran.err and "Traceback" not in ran.err
    assert f"run or record not found: {word}" in invoke("compare", "--", word, "another").err


def test_an_unexpected_exception_is_kept_with_the_run(cli, manifest_file: Path, tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(
        "import inat_ft.training\n"
        "def broken(*_, **__): raise KeyError('lost')\n"
        "inat_ft.training.fit = broken\n"
        "from inat_ft.cli.main import run\n"
        "run()\n"
    )
    secret = "postgresql://me:hunter2@host/db"
    command = [sys.executable, "plugin.py", "train", *SMALL, "--split", str(manifest_file), "--name", "r"]
    environment = {**os.environ, "WANDB_API_KEY": "0123456789abcdef", "OMP_NUM_THREADS": "1"}
    command += ["--set", f"track.project={secret}", "--set", "track.entity=0123456789abcdef"]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 1 and "Traceback" not in ran.stderr
    assert "inat-ft: KeyError: 'lost'" in ran.stderr
    assert "please report it and attach runs/r/crash.txt" in ran.stderr
    kept = Path("runs/r/crash.txt").read_text()
    assert "in broken" in kept and "KeyError: 'lost'" in kept and "torch " in kept and "--name r" in kept
    assert "hunter2" not in kept and "0123456789abcdef" not in kept
    ran = subprocess.run([*command, "--debug"], capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" in ran.stderr and ran.returncode == 1


def test_without_a_run_the_cache_folder_keeps_it(invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr("inat_ft_doctor.stores.list_stores", broken)
    ran = invoke("cache")
    assert ran.code == 1 and str(tmp_path / "cache" / "crash.txt") in ran.err
    assert "ZeroDivisionError: odd" in (tmp_path / "cache" / "crash.txt").read_text()
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("INAT_FT_CACHE_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr("tempfile.tempdir", None)
    ran = invoke("cache")
    file = Path(re.search(r"attach (\S+)", ran.err)[1])
    assert file.name == "crash.txt" and file.is_relative_to(tmp_path) and "odd" in file.read_text()


def test_each_process_of_a_training_keeps_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    error = ValueError("x")
    assert write_crash(error, tmp_path) == tmp_path / "crash-3.txt"
    assert write_crash(error, tmp_path / "other") == tmp_path / "crash-3.txt"


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:SECRET@host/db",
        "postgresql:/u:SECRET/db",
        "mysql://u:T0p@SECRET@host",
        "https://h/x?password=SECRET&a=b",
        "--set key=SECRET",
        "{'api_key': 'SECRET'}",
    ],
)
def test_secrets_do_not_reach_the_report(text: str) -> None:
    assert "SECRET" not in redact(f"before {text} after")
    assert redact(f"before {text} after").startswith("before ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_the_exit_code(manifest_file: Path, number: int, code: int) -> None:
    words = [*SMALL, "--set", "optim.epochs=5000", "--patience", "0", "--split", str(manifest_file), "--name", "r"]
    command = [sys.executable, "-m", "inat_ft", "train", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not Path("runs/r/resume.pt").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=900)
    assert process.returncode == code
    assert "inat-ft train --resume runs/r" in said and "Traceback" not in said


IN_A_CALLBACK = """
import os, sys, time, typer, weakref
from inat_ft.cli import main

class Thing:
    pass

def callback(reference):
    os.kill(os.getpid(), int(sys.argv[1]))
    for _ in range(1000):
        pass

app = typer.Typer(cls=main._Commands)

@app.callback(invoke_without_command=True)
def wait():
    thing = Thing()
    reference = weakref.ref(thing, callback)
    del thing
    time.sleep(30)
    print("the signal was lost")

main.app, sys.argv = lambda: app([]), sys.argv
main.run()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_a_callback_whose_exceptions_python_discards_is_repeated(number: int, code: int) -> None:
    command = [sys.executable, "-c", IN_A_CALLBACK, str(int(number))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == code and not ran.stdout and "Traceback" not in ran.stderr, ran.stderr


WHILE_OPTIONS_ARE_READ = """
import os, sys, time
from inat_ft.cli import main

main._Commands.make_context = lambda *_, **__: [os.kill(os.getpid(), int(sys.argv[1])), time.sleep(30)]
main.run()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_the_command_begins_has_the_same_exit_code(number: int, code: int) -> None:
    command = [sys.executable, "-c", WHILE_OPTIONS_ARE_READ, str(int(number))]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == code and not ran.stdout and "Traceback" not in ran.stderr, ran.stderr


def test_a_run_is_resumed_from_another_folder_whatever_its_name(
    invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    make_images(Path("data"), classes=2, each=10)
    assert invoke("split", "data", "--no-near").code == 0
    assert invoke("train", *SMALL, "--name", "695e0514").code == 0
    Path("runs/695e0514/record.json").unlink()
    (tmp_path / "project").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    run = tmp_path / "moved" / "runs" / "695e0514"
    ran = invoke("train", "--resume", run)
    assert ran.code == 0 and f"run:  {run}" in ran.out
    assert (run / "record.json").exists()
    monkeypatch.chdir(tmp_path)
    ran = invoke("train", "--config", run / "config.yaml", "--dry-run")
    assert ran.code == 0, ran.err
    (run / "record.json").unlink()
    (tmp_path / "moved" / "splits").rename(tmp_path / "moved" / "elsewhere")
    ran = invoke("train", "--resume", run)
    assert ran.code == 2 and "is missing" in ran.err and "--split FILE" in ran.err
    split = next((tmp_path / "moved" / "elsewhere").glob("*.csv"))
    assert invoke("train", "--resume", run, "--split", split).code == 0
    ran = invoke("train", "--resume", run, "--lr", "0.1")
    assert ran.code == 2 and "takes its settings from the run" in ran.err


@pytest.mark.slow
def test_without_a_home_folder_a_temporary_one_is_used(tmp_path: Path) -> None:
    make_images(tmp_path / "data", classes=2, each=10)
    (tmp_path / "tmp").mkdir()
    code = "import pwd\ndef unlisted(uid): raise KeyError(uid)\npwd.getpwuid = unlisted\n"
    code += "from inat_ft.cli.main import run\nrun()"
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    absolute = str(tmp_path / "splits" / "data.csv")
    for words in (
        ["split", "data"],
        ["train", *SMALL, "--cache", "packed", "--split", absolute],
        ["doctor"],
        ["cache"],
    ):
        command = [sys.executable, "-c", code, *words]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr.count("there is no home folder") == 1
        assert not (tmp_path / "~").exists()
    homes = [path for path in (tmp_path / "tmp").iterdir() if path.name.startswith("inat-ft-")]
    assert [path.name for path in homes] == [f"inat-ft-{os.getuid()}"]
    assert "packed" in ran.stdout and homes[0].stat().st_mode & 0o777 == 0o700


def test_the_demo_runs_its_commands_through_the_context() -> None:
    assert "inat_ft.cli.main" not in (Path(__file__).parents[2] / "plugins" / "inat_ft_demo" / "command.py").read_text()
    assert isinstance(app, typer.Typer)


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    script = """
import os, signal, time
from inat_ft.cli import main
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, main._stop)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGTERM)  # as a scheduler sends it to a worker that its sweep stops
    print("cleaning up", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=900, check=False)
    assert (ran.returncode, ran.stdout) == (130, "cleaning up\n"), ran.stderr
