"""Clipping of gradients, for every form of optimiser."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Clipping:
    """All gradients scaled so that their norm is at most `value`, or each held in ±`value`; None or 0: left alone.

    Lightning's own refuses an optimiser in fused form under autocast, which takes unscaled gradients like any other; fp16
    has scaled ones, and no fused form here. torch takes many tensors at once where the device can.
    """

    value: float | None
    algorithm: str = "norm"

    def __call__(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip what the optimiser is about to use."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.value and self.algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, self.value)
        elif self.value:
            torch.nn.utils.clip_grad_norm_(parameters, self.value)
