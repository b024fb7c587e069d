"""Layers of a classifier as an optimizer sees them: their order, and parameters without weight decay."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatch
from importlib.util import find_spec
from typing import Any

from torch import nn

_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_NO_WEIGHT_DECAY = (
    *("*pos_embed", "*pos_embedding", "*position_embedding", "*cls_token", "*class_token", "*dist_token", "*reg_token"),
    *("*relative_position_bias_table", "*layer_scale", "*gamma", "*gamma_?"),
)


def layer_ids(classifier: nn.Module, head_name: str) -> dict[str, int]:
    """Return the layer of each parameter, by name: 0 for the stem, then one for each block, the head last.

    timm models define the layers (`group_matcher`). In other models, a block is one of the repeated modules, such as a
    bottleneck or an encoder layer. Parameters between two blocks, such as downsampling, belong to the next block; a final
    normalization belongs to the last block. Without repeated modules, each weight is a layer.
    """
    matcher: Any = getattr(classifier, "group_matcher", None)
    if matcher is not None and find_spec("timm"):
        from timm.models import group_parameters

        return dict(group_parameters(classifier, matcher(coarse=False), reverse=True))
    kinds = {
        type(module)
        for module in classifier.modules()
        if not isinstance(module, _SEQUENCES) and sum(map(_has_weight, module.modules())) > 1
    }
    blocks = _blocks(classifier, kinds)
    return _by_block(classifier, blocks, head_name) if blocks else _by_weight(classifier)


def no_weight_decay(classifier: nn.Module) -> frozenset[str]:
    """Return the names of parameters without weight decay, as in timm.

    These are one-dimensional parameters and biases; position and token embeddings, relative position bias tables and layer
    scales; and the parameters that a module lists in `no_weight_decay()`.
    """
    declared: set[str] = set()
    for path, module in classifier.named_modules():
        listed: Any = getattr(module, "no_weight_decay", None)
        if listed is not None:
            declared |= {f"{path}.{name}" if path else name for name in listed()}
    patterns = (*_NO_WEIGHT_DECAY, *declared)
    return frozenset(
        name
        for name, parameter in classifier.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias") or any(fnmatch(name, pattern) for pattern in patterns)
    )


def _has_weight(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _blocks(module: nn.Module, kinds: set[type[nn.Module]]) -> list[nn.Module]:
    opened = [child for child in module.children() if _holds_blocks(child, kinds)]
    if opened:
        return [block for child in opened for block in _blocks(child, kinds)]
    return [child for child in module.children() if type(child) in kinds]


def _holds_blocks(module: nn.Module, kinds: set[type[nn.Module]]) -> bool:
    if isinstance(module, _SEQUENCES):
        return any(type(child) in kinds or _holds_blocks(child, kinds) for child in module.children())
    sequences = [child for child in module.children() if isinstance(child, _SEQUENCES)]
    counts = (Counter(type(item) for item in sequence.children() if type(item) in kinds) for sequence in sequences)
    return any(max(count.values(), default=0) > 1 for count in counts)


def _by_block(classifier: nn.Module, blocks: list[nn.Module], head_name: str) -> dict[str, int]:
    numbers = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
    head, ids, following = head_name.partition(".")[0], {}, 0
    for name, parameter in reversed(list(classifier.named_parameters())):
        number = numbers.get(id(parameter))
        if number is not None:
            ids[name] = following = number
        elif not following:
            ids[name] = len(blocks) + (name.partition(".")[0] == head)
        else:
            ids[name] = following if following > 1 else 0
    return ids


def _by_weight(classifier: nn.Module) -> dict[str, int]:
    """Number each module with a weight of two or more dimensions as a layer; normalization belongs to the previous layer."""
    ids: dict[str, int] = {}
    number = 0
    for path, module in classifier.named_modules():
        number += _has_weight(module)
        ids |= {f"{path}.{name}" if path else name: number for name, _ in module.named_parameters(recurse=False)}
    return ids
