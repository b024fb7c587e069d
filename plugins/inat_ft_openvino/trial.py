"""Two implementations of the same layers, of which the faster one is used."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from inat_ft.cache.prefix_forward import MAX_ERROR
from inat_ft.progress import Log

_ROUNDS = 2
"""Timed batches of each implementation."""
_MIN_GAIN = 1.05


class Trial(nn.Module):
    """Layers in torch, until the first batches have shown that another implementation agrees and is faster.

    convert(images): returns the other implementation, for batches like `images`. It is used if its output for the first batch
    differs from that of torch by at most 2% (relative L2 norm), and if it is at least 5% faster on the next batches.
    """

    def __init__(self, stages: nn.Module, convert: Callable[[Tensor], Callable[[Tensor], Tensor]], log: Log) -> None:
        super().__init__()
        self.stages = stages
        self._convert = convert
        self._log = log
        self._other: Callable[[Tensor], Tensor] | None = None
        self._seconds: list[float] = []
        self._is_decided = False

    @property
    def plain(self) -> nn.Module:
        """The layers in torch, uncompiled, for when memory runs out."""
        stages: nn.Module = getattr(self.stages, "plain", self.stages)
        return stages

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output of the layers for `[B, 3, H, W]`."""
        if not self._is_decided:
            return self._compare(inputs) if self._other is None else self._time(self._other, inputs)
        outputs: Tensor = self.stages(inputs) if self._other is None else self._other(inputs)
        return outputs

    def _compare(self, inputs: Tensor) -> Tensor:
        """Compute the first batch in both ways."""
        expected: Tensor = self.stages(inputs)
        try:
            other = self._convert(inputs)
            output = other(inputs)
        except Exception as problem:  # conversion traces the network, whose code may raise anything
            self._use_torch(f"cannot compute these layers: {type(problem).__name__}")
            return expected
        difference = torch.linalg.vector_norm(output.float() - expected.float())
        error = float(difference / torch.linalg.vector_norm(expected.float()).clamp(min=1e-12))
        if error <= MAX_ERROR:
            self._other = other
        else:
            self._use_torch(f"differs from torch by {error:.2%}")
        return expected

    def _time(self, other: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Compute a batch in the next of the two ways; decide after the last one."""
        number, started = len(self._seconds), time.perf_counter()
        outputs: Tensor = (other if number % 2 else self.stages)(inputs)
        self._seconds.append((time.perf_counter() - started) / len(inputs))
        if len(self._seconds) == 2 * _ROUNDS:
            ratio = min(self._seconds[::2]) / min(self._seconds[1::2])
            if ratio < _MIN_GAIN:
                self._use_torch(f"is {ratio:.2f} times as fast as torch")
            else:
                self._is_decided, self.stages = True, self.plain  # a compiled form is not needed any more
                self._log(f"prefix: computed by OpenVINO, {ratio:.2f} times as fast as torch")
        return outputs

    def _use_torch(self, reason: str) -> None:
        self._is_decided, self._other = True, None
        self._log(f"prefix: computed by torch, because OpenVINO {reason}")
