"""How much a network computes: two networks of as many parameters need not do as much work."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward(network: nn.Module, shape: Sequence[int]) -> float:
    """GFLOP of one image's evaluation: matrix products, convolutions, attention. Counted on a copy that holds no numbers."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(torch.zeros(1, *shape), torch.ones(1, dtype=torch.long))
    return counter.get_total_flops() / 1e9


def step(network: nn.Module, shape: Sequence[int]) -> float:
    """GFLOP of one image's evaluation and of its gradients."""
    model = copy.deepcopy(network).to("meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *shape), torch.ones(1, dtype=torch.long)).sum().backward()
    return counter.get_total_flops() / 1e9
