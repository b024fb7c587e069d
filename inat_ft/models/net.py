"""Net: any classifier as a chain of named stages and a new head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inat_ft.errors import ConfigError, WeightsError, did_you_mean
from inat_ft.models.layers import layer_ids, no_weight_decay
from inat_ft.models.stages import split_into_stages


class Net(nn.Module):
    """A classifier in stages: images `[N, 3, H, W]` float, normalised, to logits `[N, C]`.

    `stages` maps names to modules in forward order; `head` is Dropout and Linear. Parameters keep the names that they
    have in the classifier, so `state()` loads into the original architecture. `seed` decides what strategies add at random.
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
        """The layer of each parameter, by its name in the original classifier: 0 for the stem, the head last."""
        self.no_weight_decay: frozenset[str] = frozenset()
        """Names in the original classifier of the parameters that weight decay spares."""
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
        return self.head(self.forward_stages(inputs, start, len(self._chain)))  # type: ignore[no-any-return]

    def forward_stages(self, inputs: Tensor, start: int, stop: int) -> Tensor:
        """The stages `start` to `stop` (excluded) applied to what stage `start` takes."""
        for stage in self._chain[start:stop]:
            inputs = stage(inputs)
        return inputs

    def stages_from(self, name: str, option: str = "") -> list[nn.Module]:
        """The stages from the named one on. The head's own name stands for no stage at all.

        option: how a user names the stage, such as `--unfreeze-from `, for the error. Raises ConfigError naming the stages.
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
        """Let these parameters learn and freeze all others, with the statistics of their BatchNorm layers.

        Takes effect at once for `requires_grad` and at the next `train()` for the modes of modules.
        """
        self._learning = frozenset(map(id, parameters))
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in self._learning)

    def is_trainable(self, module: nn.Module) -> bool:
        """Whether any parameter of the module learns."""
        return self._learning is None or any(id(parameter) in self._learning for parameter in module.parameters())

    def train(self, mode: bool = True) -> Net:
        """Training mode, save for frozen stages and for the BatchNorm layers whose own parameters are frozen.

        Some attention layers (LeViT, TinyViT) keep a tensor that they computed from their weights in evaluation until they
        are set to training mode. Evaluation mode passes through it, so that such a tensor never outlives its weights.
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
        """The BatchNorm layers of a module, or of the whole network."""
        return (layer for layer in (module or self).modules() if isinstance(layer, _BatchNorm))

    def original_name(self, name: str) -> str:
        """The name in the original classifier of a parameter, buffer or module of this network."""
        if name.startswith("_chain."):
            return name.split(".", 2)[2]
        return name.replace("head.1", self.head_name, 1)

    def original_state_dict(self) -> dict[str, Tensor]:
        """All weights and buffers by their names in the original classifier; tensors are shared, not copied."""
        return {self.original_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_original_state_dict(self, state: Mapping[str, Tensor], source: str) -> None:
        """Take over weights by their original names, all of them. Raises WeightsError naming what does not fit."""
        mine = self.original_state_dict()
        missing, unknown = sorted(set(mine) - set(state)), sorted(set(state) - set(mine))
        if missing or unknown:
            raise WeightsError(
                f"{source} does not fit this network: {_some(missing, 'missing')}{_some(unknown, 'not known')}".strip()
            )
        wrong = [name for name in mine if mine[name].shape != state[name].shape]
        if wrong:
            has, wants = tuple(state[wrong[0]].shape), tuple(mine[wrong[0]].shape)
            raise WeightsError(f"{source} does not fit this network: {wrong[0]} is {has}, not {wants}")
        for name, tensor in mine.items():
            _require_values(state[name], tensor, name, source)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state[name])


def _require_values(given: Tensor, mine: Tensor, name: str, source: str) -> None:
    """Raise WeightsError when values cannot be taken over: weights must be finite floats, counters and indices whole."""
    if mine.is_floating_point():
        fits = given.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    else:
        fits = torch.equal(given.to(mine.dtype).to(given.dtype), given)
    if not fits:
        has, wants = (str(each.dtype).removeprefix("torch.") for each in (given, mine))
        raise WeightsError(
            f"{source} does not fit this network: {name} is {has}, not {wants}", "save it as float32: model.float()"
        )
    if mine.is_floating_point() and not given.isfinite().all():
        raise WeightsError(f"the weights {source} hold numbers that are not finite, in {name}", "choose other weights")


def _some(names: Sequence[str], what: str) -> str:
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{more}) " if names else ""


def make_net(name: str, classifier: nn.Module, num_classes: int, dropout: float, seed: int = 0) -> Net:
    """The classifier in stages, its last layer replaced by Dropout and a fresh Linear to `num_classes`.

    seed: what strategies draw by when they add something to the network.

    Raises PluginError when the classifier does not end with a linear layer or cannot be traced.
    """
    chain = split_into_stages(classifier)
    fresh = nn.Linear(chain.in_features, num_classes, bias=chain.has_bias)
    net = Net(name, chain.stages, nn.Sequential(nn.Dropout(dropout), fresh), chain.head_name, seed)
    net.layer_ids, net.no_weight_decay = layer_ids(classifier, chain.head_name), no_weight_decay(classifier)
    return net
