"""Split a classifier into a sequence of stages before its last linear layer.

The classifier is traced with torch.fx, so no list of architectures is needed. A stage boundary is possible where later
layers use exactly one tensor.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass

import torch
from torch import fx, nn

from inat_ft.errors import PluginError

_MIN_STAGES = 4
_MAX_SHARE = 0.8


@dataclass(frozen=True)
class StagedModel:
    """The stages before the last linear layer, by name in forward order, and the properties of that layer."""

    stages: dict[str, nn.Module]
    head_name: str
    in_features: int
    has_bias: bool


def split_into_stages(classifier: nn.Module) -> StagedModel:
    """Split a classifier into stages. Raises PluginError when it cannot be traced or does not end with a linear layer."""
    graph, last = _trace(classifier)
    layer = graph.get_submodule(str(last.target))
    if isinstance(layer, nn.Conv2d):  # 1 x 1: equivalent to a Linear on the mean over the image
        (features,) = last.all_input_nodes
        with graph.graph.inserting_before(last):
            last.replace_input_with(features, graph.graph.call_method("mean", (features, (2, 3))))
    stages = _stages(graph, last)
    if not stages:
        raise PluginError(f"{type(classifier).__name__} cannot be fine-tuned: it has no layer before its last one")
    in_features = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    return StagedModel(stages, str(last.target), int(in_features), layer.bias is not None)  # type: ignore[arg-type]  # attributes of a module


class _Tracer(fx.Tracer):
    """Trace a classifier. Only the modules in `opened` are traced into; every other module is one call."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened

    def graph_of(self, classifier: nn.Module) -> fx.GraphModule:
        """Return the graph of `forward` in eval mode, with its first argument as input and the defaults of all others.

        Code outside of modules that depends on the mode is traced in eval mode, so that evaluation is deterministic.
        """
        parameters = list(inspect.signature(classifier.forward).parameters.values())[1:]
        fixed = {each.name: each.default for each in parameters if each.default is not each.empty}
        was_training = classifier.training
        classifier.eval()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about arguments whose defaults fx cannot check
                return fx.GraphModule(classifier, self.trace(classifier, fixed or None), type(classifier).__name__)
        finally:
            classifier.train(was_training)


def _trace(classifier: nn.Module) -> tuple[fx.GraphModule, fx.Node]:
    """Trace the classifier, and open the largest module until there are enough stages of a reasonable size."""
    opened = _path_to_output(classifier)
    closed: set[str] = set()
    modules = dict(classifier.named_modules())
    while True:
        graph = _Tracer(opened).graph_of(classifier)
        last = _output_layer(graph)
        sizes = {
            str(node.target): _size(modules[str(node.target)])
            for node in graph.graph.nodes
            if node.op == "call_module" and node is not last
        }
        sizes = {name: size for name, size in sizes.items() if size}
        can_open = sorted(
            (name for name in sizes if name not in closed and list(modules[name].children())), key=sizes.__getitem__
        )
        if not can_open:
            return graph, last
        large = can_open[-1]
        if len(sizes) >= _MIN_STAGES and sizes[large] <= _MAX_SHARE * sum(sizes.values()):
            return graph, last
        (opened if _is_traceable(classifier, opened | {large}) else closed).add(large)


def _path_to_output(classifier: nn.Module) -> set[str]:
    """Return the modules that must be opened to reach the last layer of the classifier."""
    opened: set[str] = set()
    while True:
        try:
            graph = _Tracer(opened).graph_of(classifier)
        except Exception as error:  # fx raises any exception of the traced forward pass
            problem = f"the forward pass of {type(classifier).__name__} cannot be traced"
            raise PluginError(f"{problem}: {type(error).__name__}: {error}") from error
        last = _output_layer(graph)
        layer = graph.get_submodule(str(last.target)) if last.op == "call_module" else None
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)):
            return opened
        if layer is None or not list(layer.children()):
            what = f"'{last.target}'" if last.op == "call_module" else getattr(last.target, "__name__", last.target)
            problem = f"{type(classifier).__name__} does not end with a Linear layer that a new head could replace"
            raise PluginError(f"{problem}, but with {what}")
        opened.add(str(last.target))


def _output_layer(graph: fx.GraphModule) -> fx.Node:
    """Return the last node of the classifier that changes logits `[N, C]`: Identity and Flatten are ignored."""
    node: fx.Node = next(node for node in graph.graph.nodes if node.op == "output")
    while node.all_input_nodes and (node.op == "output" or _keeps_logits(graph, node)):
        node = node.all_input_nodes[0]
    if node.op == "call_module" and len([each for each in graph.graph.nodes if each.target == node.target]) > 1:
        raise PluginError(f"{type(graph).__name__} uses its last layer more than once: '{node.target}'")
    return node


def _keeps_logits(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph.get_submodule(str(node.target)), nn.Identity | nn.Flatten)
    return node.target in (torch.flatten, "flatten")


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_traceable(classifier: nn.Module, opened: set[str]) -> bool:
    try:
        _Tracer(opened).graph_of(classifier)
    except Exception:  # as above: the module is not opened
        return False
    return True


def _stages(graph: fx.GraphModule, linear: fx.Node) -> dict[str, nn.Module]:
    """Split the graph before `linear` into stages. Each has parameters and the name of its first module with parameters.

    A boundary is possible where exactly one value is used later. Dropout before the head is removed: the new head has one.
    """
    nodes = _before(graph, linear)
    pieces, piece, taken = [], [], next(node for node in graph.graph.nodes if node.op == "placeholder")
    for index, node in enumerate(nodes):
        piece.append(node)
        later = {used for rest in (*nodes[index + 1 :], linear) for used in rest.all_input_nodes}
        live = later - set(nodes[index + 1 :])
        if live == {node}:
            pieces.append((piece, taken, node))
            piece, taken = [], node
    merged: list[tuple[str | None, list[fx.Node], fx.Node, fx.Node]] = []
    for piece, taken, made in pieces:
        name = next((str(n.target) for n in piece if _has_parameters(graph, n)), None)
        if merged and (name is None or merged[-1][0] is None):
            first, before, start, _ = merged.pop()
            merged.append((first or name, before + piece, start, made))
        else:
            merged.append((name, piece, taken, made))
    return {name or "backbone": _module(graph, piece, taken, made) for name, piece, taken, made in merged}


def _before(graph: fx.GraphModule, linear: fx.Node) -> list[fx.Node]:
    (source,) = linear.all_input_nodes
    while source.op == "call_module" and isinstance(graph.get_submodule(str(source.target)), nn.Dropout):
        linear.replace_input_with(source, source.all_input_nodes[0])
        (source,) = linear.all_input_nodes
    needed, todo = set(), [source]
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo.extend(node.all_input_nodes)
    return [node for node in graph.graph.nodes if node in needed and node.op != "placeholder"]


def _has_parameters(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    return node.op == "call_module" and _size(graph.get_submodule(str(node.target))) > 0


def _module(graph: fx.GraphModule, piece: list[fx.Node], taken: fx.Node, made: fx.Node) -> fx.GraphModule:
    """Return the nodes of a piece as a module with only the submodules that they use, under their original names."""
    inner = fx.Graph()
    copies = {taken: inner.placeholder("inputs")}
    for node in piece:
        copies[node] = inner.node_copy(node, lambda used: copies[used])
    inner.output(copies[made])
    inner.lint()
    return fx.GraphModule(graph, inner, class_name="Stage")
