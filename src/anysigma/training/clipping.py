"""Clipping of gradients, for every form of optimiser."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clipping:
    """All gradients scaled so that their norm is at most `value`, or each held in ±`value`; None or 0: left alone.

    Lightning's own refuses an optimiser in fused form under autocast, which takes unscaled gradients like any other; fp16
    has scaled ones, and no fused form here. torch takes many tensors at once where the device can.
    """

    value: float | None
    algorithm: str = "norm"

    def __call__(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip what the optimiser is about to use; returns the norm that it had, on its device."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.value and self.algorithm == "norm":
            return torch.nn.utils.clip_grad_norm_(parameters, self.value)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.value:
            torch.nn.utils.clip_grad_value_(parameters, self.value)
        return norm
