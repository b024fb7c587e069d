"""The base class of strategies. It does not import torch, so options are validated before torch is loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inat_ft.config import Section

if TYPE_CHECKING:
    from torch.nn import Parameter

    from inat_ft.models.net import Net


@dataclass(frozen=True)
class Group:
    """Parameters that are trained together, at `lr_scale` (0 or more) times the learning rate of the run."""

    parameters: Iterable[Parameter]
    lr_scale: float = 1.0


class Strategy(Section):
    """Base class of strategies: select the trainable parameters of each epoch.

    The fields are the options of the strategy; the string below a field is the help of the option. Register a subclass
    in the entry-point group `inat_ft.strategies`. The engine calls `groups` for all epochs before training starts, so it
    must be a pure function of the network and the epoch.
    """

    @abstractmethod
    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """Return the trainable parameters of an epoch, counted from 0.

        All other parameters are frozen, with their BatchNorm statistics.
        """

    trains_head_only: ClassVar[bool] = False
    """Whether only the head is trained in all epochs, so that runs in one process share the other layers."""
    needs_gradients: ClassVar[bool] = False
    """Whether `resolve` may call `gradients`, which requires weights and images."""

    search_space: ClassVar[Mapping[str, Any]] = {}
    """Parameters that `sweep create --strategies` varies, in the format of a sweep file: `{"lr": {"values": [1e-3, 1e-4]}}`.

    A strategy with an empty search space is skipped by that command.
    """

    def warnings(self, epochs: int) -> Sequence[str]:
        """Return warnings for a run of `epochs` epochs, such as an option that has no effect."""
        return ()

    def resolve(self, net: Net, gradients: Callable[[], Mapping[str, float]]) -> Strategy:
        """Return the strategy with the options that depend on the training images filled in. Called once, before training.

        gradients() returns, for each parameter name of the classifier, the norm of the gradient divided by the norm of the
        parameter. The returned strategy is trained, and its options are stored in the record.
        """
        return self

    def adapt(self, net: Net) -> Net:
        """Change the structure of the network. Called once, before training. Default: no change.

        The network is already on its device: create new parameters there, and draw random ones from `net.seed`. Raise
        ConfigError when the strategy does not apply to the network.
        """
        return net

    def merge(self, net: Net) -> Net:
        """Undo `adapt` after training and keep the trained values, so that the saved network has its original structure."""
        return net
