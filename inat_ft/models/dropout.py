"""Dropout with a fast random mask on a CPU."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


class Dropout(nn.Dropout):
    """Set each value to zero with probability `p` during training, and scale the others by `1 / (1 - p)`.

    On a CPU, `torch.nn.functional.dropout` takes longer than the step of a linear head. Here one number of torch's random
    generator seeds SFC64, which draws 16 random bits for each value; `p` is rounded to a multiple of 2 ** -16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return a tensor of the same shape, `[B, D]`."""
        if not self.training or not self.p or not input.is_cpu or input.dtype != torch.float32:
            return F.dropout(input, self.p, self.training)
        seed = int(torch.empty((), dtype=torch.int64).random_())
        bits = np.random.SFC64(seed).random_raw(-(-input.numel() // 4)).view(np.uint16)[: input.numel()]
        kept = torch.from_numpy(bits >= round(self.p * _LEVELS)).view(input.shape)
        return input * kept.float().mul_(1 / (1 - self.p))
