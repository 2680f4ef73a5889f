"""The objective that DDPM and DDIM share: L_γ, and the rules that give γ."""

from typing import Protocol

import torch
from torch import Generator, Tensor

from anysigma.denoiser import Denoiser
from anysigma.gaussian import GaussianProcess, like
from anysigma.parameterizations import Parameterization


class Gamma(Protocol):
    """A rule for the weight of each t."""

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """w_t = γ_t · eps_scale_t², float64 `[B]`: what multiplies the squared error of the network's output."""
        ...


class Simple:
    """γ_t = 1: L_simple, DDPM eq. 14."""

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """eps_scale_t²."""
        return parameterization.eps_scale(q, t).square()


class LGamma:
    """L_γ = Σ_t γ_t E‖ε_θ(√α_t x_0 + √(1-α_t) eps, t) - eps‖², DDIM eq. 5, as a mean over t and pixels.

    The mean over a batch estimates L_γ/(T·d), d = C·H·W.
    """

    def __init__(self, gamma: Gamma):
        self.gamma = gamma

    def __call__(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """γ_t · mean over pixels of the squared eps error, `[B]`, for x_0, eps `[B, C, H, W]`, t long `[B]` in 1..T."""
        q, parameterization = denoiser.process, denoiser.parameterization
        output = denoiser.output(q.q_sample(x_0, t, eps), t)
        error = output - parameterization.target(q, x_0, t, eps)
        weight = like(self.gamma.weight(q, t, parameterization), x_0).flatten()
        return weight * error.square().flatten(1).mean(1)

    def draw_t(self, B: int, T: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """t ~ uniform on 1..T, long `[B]`, and the weight 1/(T p(t)) = 1, `[B]`, on the generator's device."""
        t = torch.randint(1, T + 1, (B,), generator=generator, device=generator.device)
        return t, torch.ones(B, device=generator.device)
