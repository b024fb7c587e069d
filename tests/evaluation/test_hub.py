"""`export --push-to-hub` with the real client and a loopback server: a folder that timm loads, and no token in any text."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from inat_ft.exporters import export_run
from inat_ft.training import train
from tests.fake_hub import FakeHub

pytest.importorskip("huggingface_hub")
pytest.importorskip("timm")

TOKEN = "hf_" + "SecretToken" * 3
LOAD = """
import sys, timm, torch
model = timm.create_model("hf-hub:org/leaf", pretrained=True).eval()
images = torch.load(sys.argv[1], weights_only=True)
torch.save(model(images).softmax(1).detach(), sys.argv[2])
if {}:
    from transformers import AutoModelForImageClassification
    other = AutoModelForImageClassification.from_pretrained("org/leaf").eval()
    assert torch.equal(other(images).logits, model(images)) and other.config.id2label[1] == "class1"
"""


@pytest.fixture
def run(config, directories) -> Path:
    options = {"optim__epochs": 1, "data__image_size": 64, "strategy__name": "full", "track__files": True}
    return train(config(model__backbone="timm:test_resnet", **options), directories)[1]


def environment(hub: FakeHub, **more: str) -> dict[str, str]:
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").resolve()), "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return {**kept, "OMP_NUM_THREADS": "1", **own, **more}


def push(hub: FakeHub, run: Path, *words: str, **more: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Push, and return the process with the command lines that the server saw in /proc during the requests."""
    seen: list[str] = []
    respond = hub.respond

    def watch(handler) -> None:
        seen.extend(file.read_bytes().decode(errors="replace") for file in Path("/proc").glob("[0-9]*/cmdline"))
        respond(handler)

    hub.respond = watch
    command = [sys.executable, "-m", "inat_ft", "export", str(run), "--push-to-hub", "org/leaf", *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(hub, **more), check=False)
    return ran, "\n".join(seen)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["variable", "file"])
def test_timm_and_transformers_load_what_was_pushed(run: Path, place: str) -> None:
    if place == "file":
        Path("hf").mkdir()
        (Path("hf") / "token").write_text(TOKEN)
    variable = {"HF_TOKEN": TOKEN} if place == "variable" else {}
    images = torch.randn(3, 3, 64, 64)
    torch.save(images, "images.pt")
    with FakeHub() as hub:
        ran, processes = push(hub, run, "--debug", **variable)
        assert ran.returncode == 0 and f"uploaded: {hub.url}/org/leaf" in ran.stdout, ran.stderr
        assert f"Bearer {TOKEN}" in hub.tokens and hub.private == {"org/leaf": True}
        assert {"README.md", "config.json", "model.safetensors", "curves.png"} <= set(hub.files["org/leaf"])
        script = LOAD.format(find_spec("transformers") is not None)
        command = [sys.executable, "-c", script, "images.pt", "found.pt"]
        loaded = subprocess.run(command, env=environment(hub), capture_output=True, text=True, check=False)
        assert loaded.returncode == 0, loaded.stderr
        again, _ = push(hub, run, **variable)
        assert again.returncode == 0, again.stderr
    import inat_ft

    model, _ = inat_ft.load(run)
    expected = model(images).softmax(1).detach().numpy()
    np.testing.assert_allclose(torch.load("found.pt", weights_only=True).numpy(), expected, atol=1e-5)
    texts = [file.read_bytes() for file in run.rglob("*") if file.is_file()]
    texts += [each.encode() for each in (ran.stdout, ran.stderr, processes)]
    texts += [content for repository in hub.files.values() for content in repository.values()]
    assert str(run) in processes and not any(TOKEN.encode() in text for text in texts)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "hint"), [(401, "log in with: hf auth login"), (403, "needs write access")])
def test_a_refused_upload_says_what_to_do_without_the_token(run: Path, status: int, hint: str) -> None:
    with FakeHub(refuse=status) as hub:
        ran, _ = push(hub, run, "--debug", HF_TOKEN=TOKEN)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 1 and hint in said and "cannot upload" in said
    assert f"Bearer {TOKEN}" in hub.tokens and TOKEN not in said
    assert not list(Path().rglob("crash*.txt"))
    assert (run / "model.hub" / "config.json").is_file()


@pytest.mark.slow
def test_a_server_that_cannot_be_reached(run: Path) -> None:
    with FakeHub() as hub:
        pass
    ran, _ = push(hub, run, HF_TOKEN=TOKEN)
    assert ran.returncode == 1 and "check the connection" in ran.stderr and TOKEN not in ran.stderr
    ran, _ = push(hub, run, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1")
    assert ran.returncode == 1 and "HF_HUB_OFFLINE" in ran.stderr and "Traceback" not in ran.stderr


def test_what_is_refused_before_the_export(trained: Path, cli, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for repository in ("leaf", "a/b/c", "org/le af", "org/", ""):
        ran = cli("export", trained, "--push-to-hub", repository)
        assert (
            ran.code == 2 and f"'{repository}' is not a repository name of the Hub" in ran.err and "ORG/NAME" in ran.err
        )
    ran = cli("export", trained, "--push-to-hub", "org/leaf", "--format", "onnx")
    assert ran.code == 2 and "the Hub needs the format hub-folder, not onnx" in ran.err
    ran = cli("export", trained, "--push-to-hub", "org/leaf")
    assert ran.code == 2 and "there is no token for the Hugging Face Hub" in ran.err and "hf auth login" in ran.err
    monkeypatch.setattr("inat_ft_hub.upload.find_spec", lambda name: None)
    ran = cli("export", trained, "--push-to-hub", "org/leaf")
    assert ran.code == 2 and "inat-ft[hub]" in ran.err
    assert not (trained / "model.hub").exists()


def test_a_token_that_the_server_repeats_is_not_shown(run: Path, monkeypatch) -> None:
    from inat_ft_hub.upload import prepare_upload

    from inat_ft.errors import InatFtError

    def refuse(*words: object, **options: object) -> None:
        raise OSError(f"no access with Bearer {TOKEN}")

    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    folder = export_run(run, format="hub-folder").file
    with pytest.raises(InatFtError, match=r"no access with Bearer \*\*\*") as caught:
        prepare_upload("org/leaf", None)(folder)
    assert TOKEN not in f"{caught.value}{caught.value.hint}"
