"""Several implementations of the same layers, of which the fastest is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from inat_ft.cache.prefix_forward import MAX_ERROR
from inat_ft.progress import Log

_ROUNDS = 2
"""Timed batches of each implementation."""
_MIN_GAIN = 1.05

Forward = Callable[[Tensor], Tensor]


class Trial(nn.Module):
    """Layers in torch, until the first batches have shown that another implementation agrees and is faster.

    others: by name, functions that return an implementation for batches like the argument. An implementation is used if its
    output for the first batch differs from that of torch by at most 2% (relative L2 norm) and it is the fastest on the next
    batches, by at least 5%.
    """

    def __init__(self, stages: nn.Module, others: Mapping[str, Callable[[Tensor], Forward]], log: Log) -> None:
        super().__init__()
        self.stages = stages
        self._waiting: Mapping[str, Callable[[Tensor], Forward]] | None = others
        self._log = log
        self._tried: dict[str, Forward] = {}
        self._seconds: dict[str, list[float]] = {}
        self._reasons: list[str] = []
        self._chosen: Forward | None = None

    @property
    def plain(self) -> nn.Module:
        """The layers in torch, uncompiled, for when memory runs out."""
        stages: nn.Module = getattr(self.stages, "plain", self.stages)
        return stages

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the layers for `[B, 3, H, W]`."""
        if self._waiting is not None:
            return self._compare(self._waiting, inputs)
        if self._tried:
            return self._time(inputs)
        outputs: Tensor = (self._chosen or self.stages)(inputs)
        return outputs

    def _compare(self, others: Mapping[str, Callable[[Tensor], Forward]], inputs: Tensor) -> Tensor:
        """Compute the first batch in all ways."""
        self._waiting = None
        expected: Tensor = self.stages(inputs)
        for name, convert in others.items():
            try:
                other = convert(inputs)
                output = other(inputs)
            except Exception as problem:  # conversion traces the network, whose code may raise anything
                self._reasons.append(f"{name} cannot compute these layers: {type(problem).__name__}")
                continue
            difference = torch.linalg.vector_norm(output.float() - expected.float())
            error = float(difference / torch.linalg.vector_norm(expected.float()).clamp(min=1e-12))
            if error <= MAX_ERROR:
                self._tried[name] = other
            else:
                self._reasons.append(f"{name} differs from torch by {error:.2%}")
        if self._tried:
            self._tried |= {"torch": self.stages}
            self._seconds = {name: [] for name in self._tried}
        else:
            self._use_torch()
        return expected

    def _time(self, inputs: Tensor) -> Tensor:
        """Compute a batch in the next of the ways; decide after the last one."""
        name, started = min(self._seconds, key=lambda each: len(self._seconds[each])), time.perf_counter()
        outputs = self._tried[name](inputs)
        self._seconds[name].append((time.perf_counter() - started) / len(inputs))
        if all(len(seconds) == _ROUNDS for seconds in self._seconds.values()):
            self._decide()
        return outputs

    def _decide(self) -> None:
        fastest = {name: min(seconds) for name, seconds in self._seconds.items()}
        ratios = {name: fastest["torch"] / seconds for name, seconds in fastest.items() if name != "torch"}
        best = max(ratios, key=lambda name: ratios[name])
        if ratios[best] >= _MIN_GAIN:
            self._chosen, self.stages = self._tried[best], self.plain  # a compiled form is not needed any more
            self._log(f"prefix: computed by {best}, {ratios[best]:.2f} times as fast as torch")
        else:
            self._reasons += [f"{name} is {ratio:.2f} times as fast" for name, ratio in ratios.items()]
            self._use_torch()
        self._tried = {}

    def _use_torch(self) -> None:
        self._log(f"prefix: computed by torch, because {' and '.join(self._reasons)}")
