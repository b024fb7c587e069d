"""The forward pass of training, and the settings of an optimizer step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inat_ft.config import OptimConfig
from inat_ft.data.batches import Batches
from inat_ft.engine.device import Compute, has_compiler, too_little_memory
from inat_ft.engine.distributed import ProcessGroup
from inat_ft.errors import UsageError
from inat_ft.models.net import Net
from inat_ft.progress import Log, ignore_log
from inat_ft.threads import torch_threads


class Tail(nn.Module):
    """The layers after a frozen prefix: the stages in the precision of the run, and the head in float32."""

    def __init__(self, net: Net, prefix: int, compute: Compute) -> None:
        super().__init__()
        self.stages = nn.Sequential(*list(net.stages.values())[prefix:])
        self.head = net.head
        self.compute = compute
        self.run: Callable[[Tensor], Tensor] = self.stages.forward

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits `[B, C]` float32."""
        with self.compute.autocast():
            features = self.run(inputs)
        logits: Tensor = self.head(features.float())
        return logits


@dataclass
class StepConfig:
    """How a batch becomes an optimizer step.

    class_weights: `[C]` float32 on the device. mix(inputs, labels): returns mixed inputs and targets `[B, C]`. start: for
    l2-sp, the values that parameters are pulled to, by strength. scaler: scales the loss in fp16.
    """

    config: OptimConfig
    seed: int = 0
    class_weights: Tensor | None = None
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    start: dict[float, dict[nn.Parameter, Tensor]] = field(default_factory=dict)
    compile: bool = False
    log: Log = ignore_log
    accumulation_steps: int = 1
    """Number of micro-batches per batch; it is doubled when memory runs out."""
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    _tail: Tail | None = None
    _parallel: nn.Module | None = None
    _key: tuple[int, ...] = ()

    def halve_micro_batch(self, rows: int) -> None:
        """Double the number of micro-batches. Raises InatFtError when they have two images, the minimum of BatchNorm."""
        if self.accumulation_steps >= rows // 2:
            raise too_little_memory("micro-batches of two images")
        self.accumulation_steps = min(2 * self.accumulation_steps, rows // 2)
        self.log(f"memory: out of memory, so each batch of {rows} images is split into {self.accumulation_steps} parts")

    def num_micro_batches(self, size: int, process_group: ProcessGroup) -> int:
        """Return the number of micro-batches, each with at least two images and one image per process."""
        return max(1, min(self.accumulation_steps, size // max(2, process_group.size)))

    def tail(self, net: Net, prefix: int, compute: Compute) -> nn.Module:
        """Return the layers after a prefix for training: compiled if configured, and parallel with several processes.

        They are the same object until other parameters are trainable. Raises UsageError without a compiler.
        """
        key = (prefix, *(parameter.requires_grad for parameter in net.parameters()))
        if self._parallel is None or key != self._key:
            self._key, self._tail = key, Tail(net, prefix, compute)
            if self.compile and prefix < len(net.stages):
                if not has_compiler():
                    problem = "--compile requires a C++ compiler, and none is installed"
                    raise UsageError(problem, "install g++, or omit --compile")
                self._tail.run = torch.compile(self._tail.stages.forward)
            self._parallel = compute.process_group.data_parallel(self._tail)
        return self._parallel

    def has_failed_to_compile(self, error: Exception) -> bool:
        """Return whether the compiler raised this error."""
        return self.compile and isinstance(error, torch._dynamo.exc.TorchDynamoException)

    def stop_compiling(self) -> None:
        """Run the layers uncompiled from now on."""
        assert self._tail is not None
        self.compile, self._tail.run = False, self._tail.stages.forward
        self.log("warning: torch.compile failed, so the trainable layers run uncompiled")


@dataclass(frozen=True)
class Forward:
    """The forward pass of some images: the rest of the frozen prefix, then `tail`."""

    net: Net
    batches: Batches
    prefix: int
    compute: Compute
    tail: nn.Module
    cores: int = field(default_factory=torch.get_num_threads)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits `[B, C]`. The head computes in float32 in every precision."""
        logits: Tensor = self.tail(self._frozen(inputs))
        return logits

    def _frozen(self, inputs: Tensor) -> Tensor:
        """Apply the stages of the frozen prefix that are not cached."""
        if self.batches.start >= self.prefix:
            return inputs
        with torch.no_grad(), torch_threads(self.cores):
            if self.batches.frozen:
                return self.batches.frozen(inputs)
            with self.compute.autocast():
                return self.net.forward_stages(inputs, self.batches.start, self.prefix)

    def single_threaded(self) -> AbstractContextManager[None]:
        """Use one thread if only the head is trained on a CPU: more threads are slower on a busy machine."""
        only_head = self.prefix == len(self.net.stages) and self.compute.device.type == "cpu"
        return torch_threads(1) if only_head else nullcontext()
