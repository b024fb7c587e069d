"""Net: a classifier as a sequence of named stages and a new head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.dropout import Dropout
from inat_ft.models.layers import layer_ids, no_weight_decay
from inat_ft.models.stages import split_into_stages

_FITTING = "use weights of the same network with the same number of classes"


class Net(nn.Module):
    """A classifier in stages: maps normalized images `[N, 3, H, W]` float to logits `[N, C]`.

    `stages` maps names to modules in forward order; `head` is Dropout and Linear. `original_state_dict()` has the
    parameter names of the original classifier, so it loads into that architecture. `seed` is the seed of parameters that
    strategies add.
    """

    def __init__(
        self, name: str, stages: Mapping[str, nn.Module], head: nn.Sequential, head_name: str, seed: int = 0
    ) -> None:
        super().__init__()
        self.name = name
        self.seed = seed
        self._chain = nn.ModuleList(stages.values())
        self._names = tuple(stages)
        self.head = head
        self.head_name = head_name
        self.layer_ids: Mapping[str, int] = {}
        """Layer number of each parameter, by its name in the original classifier: 0 is the stem, the head is last."""
        self.no_weight_decay: frozenset[str] = frozenset()
        """Names, in the original classifier, of parameters without weight decay."""
        self._trainable: frozenset[int] | None = None

    def with_own_head(self, dropout: float) -> Net:
        """Return a network that shares the stages and has a copy of the head. It is meant for frozen stages."""
        net = Net(self.name, self.stages, copy.deepcopy(self.head), self.head_name, self.seed)
        net.layer_ids, net.no_weight_decay = self.layer_ids, self.no_weight_decay
        net.head[0].p = dropout  # type: ignore[assignment]
        return net

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages, in forward order."""
        return self._names

    @property
    def stages(self) -> dict[str, nn.Module]:
        """Stages by name, in forward order, without the head."""
        return dict(zip(self._names, self._chain, strict=True))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.head[1].weight)  # type: ignore[arg-type]

    @property
    def default_stage(self) -> str:
        """First stage of the last third: layer3 of a ResNet."""
        return self._names[len(self._names) * 2 // 3]

    def forward(self, inputs: Tensor, start: int = 0) -> Tensor:
        """Return logits `[N, C]`. `inputs` are the inputs of stage number `start`; those of stage 0 are images."""
        return self.head(self.forward_stages(inputs, start, len(self._chain)))  # type: ignore[no-any-return]

    def forward_stages(self, inputs: Tensor, start: int, stop: int) -> Tensor:
        """Apply the stages `start` to `stop` (exclusive) to the inputs of stage `start`."""
        for stage in self._chain[start:stop]:
            inputs = stage(inputs)
        return inputs

    def stages_from(self, name: str, option: str = "") -> list[nn.Module]:
        """Return the stages from the named one on; an empty list for the name of the head.

        option: the option that sets the name, such as `--unfreeze-from `, for the hint. Raises ConfigError for an unknown
        name and lists the stages.
        """
        if name == self.head_name:
            return []
        if name not in self._names:
            known = (*self._names, self.head_name)
            near = did_you_mean(name, known)
            suggestion = "" if near or not option else f"\ntry:    {option}{self._names[-2]}"
            raise ConfigError(f"unknown stage '{name}' for {self.name}{near}", f"it has: {' '.join(known)}{suggestion}")
        return list(self._chain[self._names.index(name) :])

    def set_trainable(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make these parameters trainable and freeze all others, with the statistics of their BatchNorm layers.

        `requires_grad` changes immediately, the modes of modules at the next call of `train()`.
        """
        self._trainable = frozenset(map(id, parameters))
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in self._trainable)

    def is_trainable(self, module: nn.Module) -> bool:
        """Return whether any parameter of the module is trainable."""
        return self._trainable is None or any(id(parameter) in self._trainable for parameter in module.parameters())

    def train(self, mode: bool = True) -> Net:
        """Set training mode, except for frozen stages and for BatchNorm layers with frozen parameters.

        Some attention layers (LeViT, TinyViT) compute a tensor from their weights in eval mode and keep it until they are
        set to training mode. Eval mode is therefore entered through training mode, which discards a stale tensor.
        """
        super().train(True)
        if not mode:
            super().train(False)
        else:
            for stage in self._chain:
                if not self.is_trainable(stage):
                    stage.eval()
            for norm in self.batch_norms():
                if not self.is_trainable(norm):
                    norm.eval()
        return self

    def batch_norms(self, module: nn.Module | None = None) -> Iterator[_BatchNorm]:
        """Return the BatchNorm layers of a module, or of the whole network."""
        return (layer for layer in (module or self).modules() if isinstance(layer, _BatchNorm))

    def original_name(self, name: str) -> str:
        """Return the name in the original classifier of a parameter, buffer or module of this network."""
        if name.startswith("_chain."):
            return name.split(".", 2)[2]
        return name.replace("head.1", self.head_name, 1)

    def original_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict with the names of the original classifier. Tensors are shared, not copied."""
        return {self.original_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_original_state_dict(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load a state dict with the names of the original classifier. Raises WeightsError for tensors that do not fit."""
        mine = self.original_state_dict()
        missing, unknown = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
        if missing or unknown:
            raise WeightsError(
                f"{source} does not fit this network: {_some(missing, 'missing')}{_some(unknown, 'unexpected')}".strip(),
                _FITTING,
            )
        wrong = [name for name in mine if mine[name].shape != state[name].shape]
        if wrong:
            has, wants = tuple(state[wrong[0]].shape), tuple(mine[wrong[0]].shape)
            raise WeightsError(f"{source} does not fit this network: {wrong[0]} is {has}, not {wants}", _FITTING)
        for name, tensor in mine.items():
            _require_values(state[name], tensor, name, source)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state[name])


def _require_values(given: Tensor, mine: Tensor, name: str, source: str) -> None:
    """Raise WeightsError unless weights are finite floats, and counters and indices are integers."""
    if mine.is_floating_point():
        fits = given.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    else:
        fits = torch.equal(given.to(mine.dtype).to(given.dtype), given)
    if not fits:
        has, wants = (str(each.dtype).removeprefix("torch.") for each in (given, mine))
        raise WeightsError(
            f"{source} does not fit this network: {name} is {has}, not {wants}", "save it as float32: model.float()"
        )
    if mine.is_floating_point() and given.numel() and not torch.stack(given.aminmax()).isfinite().all():
        raise WeightsError(f"the weights {source} contain values that are not finite, in {name}", "use other weights")


def _some(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}) " if names else ""


def make_net(name: str, classifier: nn.Module, num_classes: int, dropout: float, seed: int = 0) -> Net:
    """Return the classifier in stages, with its last layer replaced by Dropout and a new Linear to `num_classes`.

    seed: seed of parameters that strategies add.

    Raises PluginError when the classifier does not end with a linear layer or cannot be traced.
    """
    chain = split_into_stages(classifier)
    fresh = nn.Linear(chain.in_features, num_classes, bias=chain.has_bias)
    net = Net(name, chain.stages, nn.Sequential(Dropout(dropout), fresh), chain.head_name, seed)
    net.layer_ids, net.no_weight_decay = layer_ids(classifier, chain.head_name), no_weight_decay(classifier)
    return net
