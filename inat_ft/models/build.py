"""From the model section of a configuration to a network ready to train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from inat_ft.config import ModelConfig, build_backbone
from inat_ft.errors import WeightsError
from inat_ft.models.base import Backbone, Preprocess, Pretrained
from inat_ft.models.net import Net, make_net
from inat_ft.models.weights import fingerprint, read_metadata, read_state


@dataclass(frozen=True)
class Model:
    """A network and how its images are made."""

    net: Net
    preprocess: Preprocess
    weights: str
    """What it started from, for people."""
    weights_sha256: str | None
    """Fingerprint of the pretrained weights; None from scratch."""


def build_model(
    config: ModelConfig, num_classes: int, seed: int, image_size: int | None = None, load: bool = True
) -> Model:
    """The network with its weights and a fresh head that the seed decides.

    image_size in pixels; None means what the weights were made for. load: False leaves the weights random, which is
    enough to look at the network. Raises WeightsError, ConfigError or PluginError.
    """
    backbone: Backbone = build_backbone(config)
    pretrained = _pretrained(backbone, config)
    preprocess = pretrained.preprocess if pretrained else Preprocess()
    if image_size is not None:
        preprocess = preprocess.model_copy(update={"image_size": image_size})
    net = empty_net(config, num_classes, preprocess.image_size, seed)
    if pretrained is None or not load:
        return Model(net, preprocess, "random", None)
    state = pretrained.load()
    mine = net.state()
    for name in (f"{net.head_name}.weight", f"{net.head_name}.bias"):  # another number of classes: keep the fresh head
        if name not in state or state[name].shape != mine[name].shape:
            state[name] = mine[name]
    state = {name: tensor for name, tensor in state.items() if not _auxiliary(name, mine)}
    net.load(state, pretrained.name)
    return Model(net, preprocess, pretrained.name, fingerprint(state))


def _auxiliary(name: str, known: dict[str, torch.Tensor]) -> bool:
    """Whether a tensor belongs to an auxiliary output (GoogLeNet, Inception), which the network does not have."""
    return name.lower().startswith("aux") and name not in known


def empty_net(config: ModelConfig, num_classes: int, image_size: int, seed: int) -> Net:
    """The network with random weights that the seed decides; the global random state is left alone."""
    backbone: Backbone = build_backbone(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = backbone.build(num_classes, image_size, config.dropout)
        torch.manual_seed(seed)  # the head's start does not hang on how many numbers the backbone drew
        return make_net(config.backbone, classifier, num_classes, config.dropout if backbone.drops_before_head else 0.0)


def _pretrained(backbone: Backbone, config: ModelConfig) -> Pretrained | None:
    name = config.weights or "none"
    if name == "none":
        return None
    file = Path(name)
    if not (file.suffix or file.exists()):
        return backbone.weights(name)
    return Pretrained(str(file), lambda: read_state(file), _preprocess_of(file, backbone))


def _preprocess_of(file: Path, backbone: Backbone) -> Preprocess:
    """The input that a weights file was made for: what it says itself, else what the backbone's own weights take."""
    said = read_metadata(file).get("preprocess") if file.is_file() else None
    if said:
        return Preprocess.model_validate(json.loads(said))
    try:
        return backbone.weights("imagenet").preprocess
    except WeightsError:
        return Preprocess()
