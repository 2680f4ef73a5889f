"""A small perceptron for data of a few numbers."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from anysigma.networks.layers import TimeEmbedding, zero_init


class MLP(nn.Module):
    """(x_t `[B, C, H, W]`, t long `[B]`) → `[B, C, H, W]`: `layers` residual layers of `width`, each told the time.

    It sees no neighbourhood: every number of `shape` (C, H, W) is an input of its own. Starts at 0.
    t is embedded as it is, from 1: there is no other network whose weights it could hold.
    """

    def __init__(self, shape: Sequence[int], width: int = 128, layers: int = 3):
        super().__init__()
        numbers = math.prod(shape)
        self.time = TimeEmbedding(width, width)
        self.first = nn.Linear(numbers, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.last = zero_init(nn.Linear(width, numbers))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        h = self.first(x_t.flatten(1).to(self.first.weight.dtype))
        for layer in self.hidden:
            h = h + layer(F.silu(h + time))
        return self.last(F.silu(h)).reshape(x_t.shape)
