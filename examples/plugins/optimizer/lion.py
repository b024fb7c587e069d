"""The optimizer Lion (Chen et al. 2023, arXiv 2302.06675) in a package of its own."""

import torch

from inat_ft.optim import Optimizer


class Lion(Optimizer):
    """Step in the direction of the sign of an interpolated gradient. Use about a tenth of Adam's learning rate."""

    beta1: float = 0.9
    """Weight of the moving average in the update, 0 to 1."""
    beta2: float = 0.99
    """Decay of the moving average of the gradients, 0 to 1."""

    def build(self, groups, config):
        return TorchLion(groups, {"lr": config.lr, "beta1": self.beta1, "beta2": self.beta2})


class TorchLion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(average.lerp(weight.grad, 1 - group["beta1"]).sign_(), alpha=group["lr"])
                average.lerp_(weight.grad, 1 - group["beta2"])
