"""Net: any classifier as a chain of named stages and a new head.

The chain is found by tracing the classifier with torch.fx, so no architecture is known by name here: a stage begins
where a single tensor is all that later layers need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inat_ft.errors import ConfigError, PluginError, WeightsError, did_you_mean

_MIN_STAGES = 4
_MAX_SHARE = 0.8


class Net(nn.Module):
    """A classifier in stages: images `[N, 3, H, W]` float, normalised, to logits `[N, C]`.

    `stages` maps names to modules in forward order; `head` is Dropout and Linear. Parameters keep the names that they
    have in the classifier, so `state()` loads into the original architecture.
    """

    def __init__(self, name: str, stages: Mapping[str, nn.Module], head: nn.Sequential, head_name: str) -> None:
        super().__init__()
        self.name = name
        self._chain = nn.ModuleList(stages.values())
        self._names = tuple(stages)
        self.head = head
        self.head_name = head_name
        self._learning: frozenset[int] | None = None

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in forward order."""
        return self._names

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Stage modules by name, in forward order, without the head."""
        return dict(zip(self._names, self._chain, strict=True))

    @property
    def num_classes(self) -> int:
        """How many logits there are."""
        return len(self.head[1].weight)  # type: ignore[arg-type]

    @property
    def default_stage(self) -> str:
        """Where the last third of the stages begins: layer3 of a ResNet."""
        return self._names[len(self._names) * 2 // 3]

    def forward(self, inputs: Tensor, start: int = 0) -> Tensor:
        """Logits `[N, C]`. `inputs` is what stage number `start` takes; 0 means images."""
        return self.head(self.run(inputs, start, len(self._chain)))  # type: ignore[no-any-return]

    def run(self, inputs: Tensor, start: int, stop: int) -> Tensor:
        """The stages `start` to `stop` (excluded) applied to what stage `start` takes."""
        for stage in self._chain[start:stop]:
            inputs = stage(inputs)
        return inputs

    def stages_from(self, name: str) -> list[nn.Module]:
        """The stages from the named one on. The head's own name stands for no stage at all.

        Raises ConfigError naming the stages there are.
        """
        if name == self.head_name:
            return []
        if name not in self._names:
            known = (*self._names, self.head_name)
            raise ConfigError(
                f"unknown stage '{name}' for {self.name}{did_you_mean(name, known)}",
                f"it has: {' '.join(known)}\ntry:    --unfreeze-from {self._names[-2]}",
            )
        return list(self._chain[self._names.index(name) :])

    def learn(self, parameters: Iterable[nn.Parameter]) -> None:
        """Let these parameters learn and freeze all others, with the statistics of their BatchNorm layers.

        Takes effect at once for `requires_grad` and at the next `train()` for the modes of modules.
        """
        self._learning = frozenset(map(id, parameters))
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in self._learning)

    def learns(self, module: nn.Module) -> bool:
        """Whether any parameter of the module learns."""
        return self._learning is None or any(id(parameter) in self._learning for parameter in module.parameters())

    def train(self, mode: bool = True) -> Net:
        """Training mode, save for frozen stages and for the BatchNorm layers whose own parameters are frozen."""
        super().train(mode)
        if mode:
            for stage in self._chain:
                if not self.learns(stage):
                    stage.eval()
            for norm in self.batch_norms():
                if not self.learns(norm):
                    norm.eval()
        return self

    def batch_norms(self, module: nn.Module | None = None) -> Iterator[_BatchNorm]:
        """The BatchNorm layers of a module, or of the whole network."""
        return (layer for layer in (module or self).modules() if isinstance(layer, _BatchNorm))

    def origin(self, name: str) -> str:
        """The name in the original classifier of a parameter, buffer or module of this network."""
        if name.startswith("_chain."):
            return name.split(".", 2)[2]
        return name.replace("head.1", self.head_name, 1)

    def state(self) -> dict[str, Tensor]:
        """All weights and buffers by their names in the original classifier; tensors are shared, not copied."""
        return {self.origin(name): tensor for name, tensor in self.state_dict().items()}

    def load(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take over weights by their original names, all of them. Raises WeightsError naming what does not fit."""
        mine = self.state()
        missing, unknown = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
        if missing or unknown:
            raise WeightsError(
                f"{source} does not fit this network: {_some(missing, 'missing')}{_some(unknown, 'not known')}".strip()
            )
        wrong = [name for name in mine if mine[name].shape != state[name].shape]
        if wrong:
            has, wants = tuple(state[wrong[0]].shape), tuple(mine[wrong[0]].shape)
            raise WeightsError(f"{source} does not fit this network: {wrong[0]} is {has}, not {wants}")
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state[name])


def _some(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}) " if names else ""


def make_net(name: str, classifier: nn.Module, num_classes: int, dropout: float) -> Net:
    """The classifier in stages, its last Linear replaced by Dropout and a fresh Linear to `num_classes`.

    Raises PluginError when the classifier has no Linear to replace or its layers do not form a chain.
    """
    head_name, last = _last_linear(classifier)
    graph, linear = _trace(classifier, head_name)
    stages = _stages(graph, linear)
    fresh = nn.Linear(last.in_features, num_classes)
    return Net(name, stages, nn.Sequential(nn.Dropout(dropout), fresh), head_name)


def _last_linear(classifier: nn.Module) -> tuple[str, nn.Linear]:
    linears = [(name, module) for name, module in classifier.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise PluginError(f"{type(classifier).__name__} has no Linear layer that a new head could replace")
    return linears[-1]


class _Tracer(fx.Tracer):
    """Traces a classifier, opening only the modules named; each other module stays one call."""

    def __init__(self, opened: set[str]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.opened


def _trace(classifier: nn.Module, head_name: str) -> tuple[fx.GraphModule, fx.Node]:
    """Trace, opening modules from the largest down until there are enough stages of a reasonable size."""
    opened = {head_name.rsplit(".", depth)[0] for depth in range(1, head_name.count(".") + 1)}
    closed: set[str] = set()
    modules = dict(classifier.named_modules())
    while True:
        tracer = _Tracer(opened)
        try:
            graph = fx.GraphModule(classifier, tracer.trace(classifier))
        except Exception as error:  # fx raises whatever the traced forward pass raises
            raise PluginError(
                f"the forward pass of {type(classifier).__name__} cannot be traced: {type(error).__name__}: {error}"
            ) from error
        sizes = {
            str(node.target): _size(modules[str(node.target)])
            for node in graph.graph.nodes
            if node.op == "call_module" and node.target != head_name
        }
        sizes = {name: size for name, size in sizes.items() if size}
        can_open = sorted(
            (name for name in sizes if name not in closed and list(modules[name].children())), key=sizes.__getitem__
        )
        if not can_open:
            break
        large = can_open[-1]
        if len(sizes) >= _MIN_STAGES and sizes[large] <= _MAX_SHARE * sum(sizes.values()):
            break
        (opened if _opens(classifier, opened | {large}) else closed).add(large)
    return graph, _check_end(graph, head_name)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _opens(classifier: nn.Module, opened: set[str]) -> bool:
    try:
        _Tracer(opened).trace(classifier)
    except Exception:  # as above: then the module stays whole
        return False
    return True


def _check_end(graph: fx.GraphModule, head_name: str) -> fx.Node:
    """The call of the last Linear, which must be the last thing that the classifier does."""
    calls = [node for node in graph.graph.nodes if node.op == "call_module" and node.target == head_name]
    output = next(node for node in graph.graph.nodes if node.op == "output")
    if len(calls) != 1 or output.args[0] is not calls[0]:
        raise PluginError(f"the classifier does not end with its last Linear layer, '{head_name}'")
    call: fx.Node = calls[0]
    return call


def _stages(graph: fx.GraphModule, linear: fx.Node) -> dict[str, nn.Module]:
    """Cut the graph before `linear` into stages, each with parameters and named after its first module with any.

    A cut is possible where exactly one value is used later. Dropout before the head goes: the new head has its own.
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
    """The nodes of a piece as a module of their own that holds just what they use, under the original names."""
    inner = fx.Graph()
    copies = {taken: inner.placeholder("inputs")}
    for node in piece:
        copies[node] = inner.node_copy(node, lambda used: copies[used])
    inner.output(copies[made])
    inner.lint()
    return fx.GraphModule(graph, inner, class_name="Stage")
