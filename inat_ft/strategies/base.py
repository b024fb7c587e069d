"""The contract of a strategy. Nothing heavy is imported here, so that options can be checked before torch is loaded."""

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
    """Parameters that learn together, at `lr_scale` times the run's learning rate (0 or more)."""

    parameters: Iterable[Parameter]
    lr_scale: float = 1.0


class Strategy(Section):
    """Says what learns in each epoch. Its fields are its options; a string below a field is the option's help.

    Registered under the entry-point group `inat_ft.strategies`. The engine asks for the groups of all epochs ahead of
    training, so `groups` must be pure: the same answer for the same network and epoch, and nothing changed by asking.
    """

    @abstractmethod
    def groups(self, net: Net, epoch: int) -> Sequence[Group]:
        """What learns in an epoch, counted from 0. Whatever is not returned is frozen, its BatchNorm statistics too."""

    needs_gradients: ClassVar[bool] = False
    """Whether `choose` may ask for gradients, for which weights and images are needed."""

    search_space: ClassVar[Mapping[str, Any]] = {}
    """What `sweep create --strategies` tries of this strategy, as a sweep's file has it: `{"lr": {"values": [1e-3, 1e-4]}}`.

    A strategy without it is not part of that sweep.
    """

    def warnings(self, epochs: int) -> Sequence[str]:
        """What a user should know before a training of so many epochs, such as an option that comes to nothing."""
        return ()

    def resolve(self, net: Net, gradients: Callable[[], Mapping[str, float]]) -> Strategy:
        """Settle, once and before training, what depends on the training images. Default: nothing does.

        gradients() measures for each parameter, by its name in the classifier, the norm of its gradient over its own norm.
        The strategy returned is the one that trains, and whose options the record holds.
        """
        return self

    def adapt(self, net: Net) -> Net:
        """Change the network's structure before training, once. Default: leave it as it is.

        The network is on its device already: new parameters are made there, from `net.seed` where they are random. Raise
        ConfigError when the network has nothing that the strategy could change.
        """
        return net

    def merge(self, net: Net) -> Net:
        """Undo `adapt` after training, keeping what was learned: what is saved is an ordinary network."""
        return net
