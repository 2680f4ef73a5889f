"""What a network's weights are before the first step."""

import torch
from torch import nn

from anysigma.networks.layers import Attention


def as_made(network: nn.Module) -> None:
    """PyTorch's own: weights and biases uniform in ±1/√(fan-in)."""


@torch.no_grad()
def fan_average(network: nn.Module) -> None:
    """DDPM's: weights uniform with variance 2/(fan-in + fan-out) (Glorot & Bengio 2010), biases 0.

    Layers that start at zero get 1e-10 of that variance. The queries, keys and values of an attention are three layers.
    """
    threefold = {part.qkv for part in network.modules() if isinstance(part, Attention)}
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            gain = 1.0 if layer.weight.is_meta or layer.weight.any() else 1e-5
            for weight in layer.weight.chunk(3 if layer in threefold else 1):
                nn.init.xavier_uniform_(weight, gain)
            nn.init.zeros_(layer.bias)


FIRST_WEIGHTS = {"torch": as_made, "fan_average": fan_average}
