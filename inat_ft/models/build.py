"""Build a network from the model section of a configuration."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from inat_ft.config import ModelConfig, build_backbone
from inat_ft.errors import ConfigError, PluginError, WeightsError
from inat_ft.models.base import Backbone, Preprocess, PretrainedWeights
from inat_ft.models.net import Net, make_net
from inat_ft.models.stages import split_into_stages
from inat_ft.models.weights import fingerprint, named_alike, read_metadata, read_state
from inat_ft.registry import BACKBONES, plugin_errors, plugin_label
from inat_ft.settings import expand_user

_OTHER_SIZE = "choose another size, or omit --image-size to use the size that the weights were trained with"
_MAX_EXTRA_TOKENS = 8
_INITIALIZERS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)
"""Functions that torch lets a mode replace. Other initializers call the methods below."""
_DRAWS = (Tensor.normal_, Tensor.uniform_)
"""Methods that are skipped for parameters only: truncated distributions are drawn again, in other tensors, until all fit."""


@dataclass(frozen=True)
class Model:
    """A network and the preprocessing of its images."""

    net: Net
    preprocess: Preprocess
    weights: str
    """Name of the initial weights, for display."""
    weights_sha256: str | None
    """SHA-256 of the pretrained weights; None for random weights."""


def build_model(
    config: ModelConfig,
    num_classes: int,
    seed: int,
    image_size: int | None = None,
    load: bool = True,
    eval_image_size: int | None = None,
) -> Model:
    """Return the network with its weights and a new head initialized from the seed.

    image_size: in pixels; None is the size that the weights were trained with. eval_image_size: the size for evaluation, if
    it differs. load: if False, the weights stay random, which suffices to inspect the network. Raises WeightsError,
    ConfigError or PluginError.
    """
    backbone: Backbone = build_backbone(config)
    with plugin_errors(BACKBONES, type(backbone), "weights()"):
        pretrained = _pretrained(backbone, config)
    own = pretrained.preprocess if pretrained else Preprocess()
    sizes = {"image_size": image_size or own.image_size, "eval_image_size": eval_image_size}
    preprocess = own.model_copy(update=sizes)
    size = min(preprocess.image_size, preprocess.eval_size)
    if pretrained and size < pretrained.min_size:
        raise ConfigError(
            f"images of {size} pixels are too small for {config.backbone} with weights {pretrained.name}",
            f"use at least {pretrained.min_size}; the weights were trained with {own.image_size}",
        )
    net = build_net(config, num_classes, preprocess.image_size, seed, initialize=pretrained is None or not load)
    for size in {preprocess.image_size, preprocess.eval_size} - ({own.image_size} if pretrained else set()):
        check_input_size(net, size, preprocess.image_size)
    if pretrained is None or not load:
        return Model(net, preprocess, "random", None)
    state = _adapt_state_dict(backbone, pretrained, net)
    net.load_original_state_dict(state, pretrained.name)
    return Model(net, preprocess, pretrained.name, fingerprint(state))


def _adapt_state_dict(backbone: Backbone, pretrained: PretrainedWeights, net: Net) -> dict[str, Tensor]:
    """Return the pretrained state dict with the names, the head and the image size of this network."""
    mine = net.original_state_dict()
    with plugin_errors(BACKBONES, type(backbone), "reading its weights"):
        state = pretrained.load()
    named = named_alike(state, mine)
    # GoogLeNet and Inception have auxiliary outputs that this network lacks
    state = {name: tensor for name, tensor in named.items() if name in mine or not name.lower().startswith("aux")}
    for name in (f"{net.head_name}.{part}" for part, _ in net.head[1].named_parameters()):
        if name not in state or state[name].shape != mine[name].shape:  # another number of classes: keep the new head
            state[name] = mine[name]
    for name, own in mine.items():
        if name in state:
            state[name] = fit_positions(name, state[name], own.shape)
        elif name.endswith(".num_batches_tracked"):  # old checkpoints have none
            state[name] = own
    return state


def fit_positions(name: str, given: Tensor, wanted: torch.Size) -> Tensor:
    """Return a position embedding `[1, E + S*S, D]` resampled to the wanted shape (Dosovitskiy et al. 2021, section 3.2).

    The first E rows belong to class and register tokens and do not change. Other tensors are returned unchanged.
    """
    is_embedding = "pos_embed" in name and given.ndim == len(wanted) == 3 and given.shape[2] == wanted[2]
    if not is_embedding or given.shape == wanted:
        return given
    for extra in range(min(_MAX_EXTRA_TOKENS, given.shape[1] - 1, wanted[1] - 1) + 1):
        side, new = math.isqrt(given.shape[1] - extra), math.isqrt(wanted[1] - extra)
        if side**2 + extra == given.shape[1] and new**2 + extra == wanted[1]:
            grid = given[:, extra:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True)
            return torch.cat([given[:, :extra], grid.flatten(2).transpose(1, 2)], 1)
    return given


class _Uninitialized(TorchFunctionMode):
    """Skip the default initialization of new layers, because other weights will be loaded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor of an initializer as it is; call every other function."""
        if func in _INITIALIZERS:
            return kwargs["tensor"]
        if func in _DRAWS and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


def build_net(config: ModelConfig, num_classes: int, image_size: int, seed: int, initialize: bool = True) -> Net:
    """Return the network with random weights drawn from the seed. The global random state does not change.

    initialize: if False, weights of the backbone are undefined. Drawing them takes longer than loading others.
    """
    backbone: Backbone = build_backbone(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with nullcontext() if initialize else _Uninitialized():
            classifier = _built(backbone, config, num_classes, image_size)
        if not initialize and {name for name, _ in classifier.named_buffers()} - set(classifier.state_dict()):
            return build_net(config, num_classes, image_size, seed)  # those may be random, but are not loaded
        torch.manual_seed(seed)  # the head does not depend on how many numbers the backbone draws
        try:
            dropout = config.dropout if backbone.head_dropout else 0.0
            return make_net(config.backbone, classifier, num_classes, dropout, seed)
        except PluginError as error:
            raise PluginError(
                f"{config.backbone}, {plugin_label(BACKBONES, type(backbone))}, cannot be split into stages: {error.message}",
                "see the requirements in docs/plugins/backbones.md",
            ) from error


def build_classifier(config: ModelConfig, num_classes: int, image_size: int, state: dict[str, Tensor]) -> nn.Module:
    """Return the classifier in its original architecture, its last layer replaced, with the weights of a trained network.

    state: the weights as `save_model` writes them. Raises WeightsError when they do not fit, ConfigError or PluginError.
    """
    backbone: Backbone = build_backbone(config)
    with torch.random.fork_rng(devices=[]):
        classifier = _built(backbone, config, num_classes, image_size)
        chain = split_into_stages(classifier)
        last = classifier.get_submodule(chain.head_name)
        if isinstance(last, nn.Conv2d):
            new: nn.Module = nn.Conv2d(chain.in_features, num_classes, 1, bias=chain.has_bias)
            state = {**state, f"{chain.head_name}.weight": state[f"{chain.head_name}.weight"][:, :, None, None]}
        else:
            new = nn.Linear(chain.in_features, num_classes, bias=chain.has_bias)
    classifier.set_submodule(chain.head_name, new)
    try:
        classifier.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"the weights do not fit {config.backbone}: {_first_line(error)}") from error
    return classifier


def _built(backbone: Backbone, config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    with plugin_errors(BACKBONES, type(backbone), "build()"):
        try:
            classifier = backbone.build(num_classes, image_size, config.dropout)
        except (AssertionError, ValueError) as error:  # builders raise these for an unsupported size
            problem = f"{config.backbone} cannot be built for images of {image_size} pixels: {_first_line(error)}"
            raise ConfigError(problem, _OTHER_SIZE) from error
    if not isinstance(classifier, nn.Module):
        label = plugin_label(BACKBONES, type(backbone))
        raise PluginError(f"{label} must return a torch.nn.Module from build(), not {classifier!r}")
    return classifier


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_input_size(net: Net, size: int, built_for: int) -> None:
    """Run the network on an image of this size. Raises ConfigError when it does not support the size."""
    device = next(net.parameters()).device
    net.eval()
    try:
        with torch.no_grad(), redirect_stderr(StringIO()):  # torch.fx prints the failing code
            logits = net(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        fixed = f"; it was built for {built_for}" if size != built_for else ""
        problem = f"{net.name} does not support images of {size} pixels{fixed}: {_first_line(error)}"
        raise ConfigError(problem, _OTHER_SIZE) from None
    if logits.shape != (1, net.head[1].out_features):
        raise PluginError(f"{net.name} returns {tuple(logits.shape)} for one image, not one row of logits")


def _pretrained(backbone: Backbone, config: ModelConfig) -> PretrainedWeights | None:
    name = config.weights or "none"
    if name == "none":
        return None
    file = expand_user(name)
    if not (file.suffix or file.exists()):
        return backbone.weights(name)
    try:
        own = backbone.weights("imagenet")
    except WeightsError:
        own = PretrainedWeights("none", dict)
    return PretrainedWeights(name, lambda: read_state(file), _preprocess_of(file) or own.preprocess, own.min_size)


def _preprocess_of(file: Path) -> Preprocess | None:
    """Return the preprocessing stored in a weights file, or None."""
    stored = read_metadata(file).get("preprocess")
    return Preprocess.model_validate(json.loads(stored)) if stored else None
