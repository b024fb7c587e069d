"""What the training loop does with an average of weights."""

from torch import Tensor


class WeightAverage:
    """No average: keep the weights of the last step. The feature `average` returns others."""

    needs_update_bn = False
    """Whether the BatchNorm statistics must be computed again for the averaged weights."""

    def before_epoch(self, epoch: int) -> None:
        """Prepare an epoch, counted from 0."""

    def after_step(self) -> None:
        """Update the average after a step."""

    def after_epoch(self, epoch: int) -> dict[str, Tensor]:
        """Return the averaged tensors by name after `epoch` epochs, or an empty dictionary if there is no average."""
        return {}
