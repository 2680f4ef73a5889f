"""The weights that are sampled from: a visible moving average of those that are trained."""

import copy
from typing import Self

import torch

from anysigma.diffusion.denoiser import Denoiser


class EMA(Denoiser):
    """A denoiser whose weights are an exponential moving average of another's; always in evaluation mode.

    `decay` in [0, 1); with `warmup` it is min(decay, (1+k)/(10+k)) at optimiser step k (from 0), so that the random
    start is soon forgotten, without it `decay` from the first step on, as in DDPM. The average starts as the weights.
    Buffers are copied. Raises ValueError for a decay outside [0, 1).
    """

    def __init__(self, denoiser: Denoiser, decay: float = 0.9999, warmup: bool = True):
        super().__init__(copy.deepcopy(denoiser.network), denoiser.process, denoiser.parameterization)
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay={decay}: must lie in [0, 1)")
        self.decay, self.warmup = decay, warmup
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: nothing samples with dropout by accident."""
        return super().train(False)

    def decay_at(self, k: int) -> float:
        """min(decay, (1+k)/(10+k)) for the k-th step from 0; without `warmup` the decay itself."""
        return min(self.decay, (1 + k) / (10 + k)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, denoiser: Denoiser, k: int) -> None:
        """average ← average + (1 - decay_k)(weights - average), after the k-th optimiser step."""
        torch._foreach_lerp_(list(self.parameters()), list(denoiser.parameters()), 1 - self.decay_at(k))
        for mine, theirs in zip(self.buffers(), denoiser.buffers(), strict=True):
            mine.copy_(theirs)
