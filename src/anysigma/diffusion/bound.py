"""The variational bound of p_θ's whole chain x_T → … → x_0, term by term, in nats an image."""

import math

import torch
from torch import Tensor

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import first_variance
from anysigma.diffusion.parameterizations import Prediction
from anysigma.diffusion.samplers.sigma import SigmaRule

# DDPM section 3.3: grey levels 0..255 on [-1, 1], each in the middle of its bin; the bins at the ends are open.
WHITE = 255


class Bound:
    """The terms of L_T + Σ_{t≥2} L_{t-1} + L_0 ≥ -log p_θ(x_0), DDPM eq. 5, for the sampler with a given σ rule.

    A rule gives the pair (σ of q_σ(x_s | x_t, x_0), std of p_θ(x_s | x_t)), s = t-1; where they differ (σ̂) each step
    pays for it. At t = 1 every rule says 0, so p_θ(x_0 | x_1) has σ_1² = β̃_2, under σ̂ too. States and noise are
    `[B, *shape]`, results float64 `[B]` on the CPU. Raises ValueError for T = 1 (no β̃_2) and where a std is 0.
    """

    def __init__(self, process: GaussianProcess, rule: SigmaRule):
        pairs = [(0.0, first_variance(process) ** 0.5)]
        pairs += [rule(process, t, t - 1) for t in range(2, process.T + 1)]
        self.process, self.rule = process, rule
        self.sigma, self.std = torch.tensor([(math.nan, math.nan), *pairs], dtype=torch.float64).unbind(1)
        if not (self.std[1:] > 0).all():
            raise ValueError(f"sigma={rule}: p_θ has no density where σ = 0; the bound needs η in (0, 1]")

    def prior(self, x_0: Tensor) -> Tensor:
        """L_T = KL(q(x_T | x_0) ‖ N(0, I)) = ½ Σ_pixels (α_T x_0² - α_T - ln(1-α_T)); 0 at α_T = 0."""
        a = self.process.alpha(self.process.T).cpu()
        return (a * x_0.cpu().double().square() - a - torch.log1p(-a)).flatten(1).sum(1) / 2

    def step(self, x_0: Tensor, eps: Tensor, prediction: Prediction, t: Tensor) -> Tensor:
        """L_{t-1} = KL(q_σ(x_s | x_t, x_0) ‖ p_θ(x_s | x_t)) = ‖μ_q - μ_θ‖²/(2 std²) + (d/2)(r - 1 - ln r).

        t long `[B]` in 2..T, s = t-1, r = σ²/std². Both means are `posterior_mean`, which is linear, DDIM eq. 7.
        """
        sigma, std = self.sigma[t.cpu()], self.std[t.cpu()]
        error = self.process.posterior_mean(x_0 - prediction.x_0, eps - prediction.eps, t - 1, sigma)
        r = (sigma / std).square()
        return squared(error) / (2 * std.square()) + x_0[0].numel() / 2 * (r - 1 - r.log())

    def decoder(self, x_0: Tensor, prediction: Prediction) -> Tensor:
        """L_0 = -log p_θ(x_0 | x_1) of the discretised decoder, DDPM eq. 13, x_0 on 256 grey levels."""
        return -log_bin(x_0, prediction.x_0, self.std[1].item()).flatten(1).sum(1)

    def log_ratio(self, x_0: Tensor, x_t: Tensor, x_s: Tensor, prediction: Prediction, t: int) -> Tensor:
        """log q_σ(x_s | x_t, x_0) - log p_θ(x_s | x_t), s = t-1, from the densities; at t = 1 -log p_θ(x_0 | x_1)."""
        q, sigma, std = self.process, self.sigma[t].item(), self.std[t].item()
        log_p = log_normal(x_s, q.posterior_mean(prediction.x_0, prediction.eps, t - 1, sigma), std)
        if t == 1:
            return -log_p
        return log_normal(x_s, q.posterior_mean(x_0, q.eps(x_t, t, x_0), t - 1, sigma), sigma) - log_p

    def log_ratio_T(self, x_0: Tensor, x_T: Tensor) -> Tensor:
        """log q(x_T | x_0) - log p(x_T), p(x_T) = N(0, I)."""
        a = self.process.alpha(self.process.T).item()
        return log_normal(x_T, a**0.5 * x_0, (1 - a) ** 0.5) - log_normal(x_T, torch.zeros_like(x_T), 1.0)

    def constant(self, x_0: Tensor) -> Tensor:
        """C of J_σ = L_γ + C, DDIM theorem 1: L_T + (d/2) ln(2π σ_1²), whatever σ and the network are."""
        return self.prior(x_0) + x_0[0].numel() / 2 * math.log(2 * math.pi * self.std[1].item() ** 2)


def squared(x: Tensor) -> Tensor:
    """‖x‖² of every image, float64 `[B]` on the CPU."""
    return x.square().flatten(1).sum(1).cpu().double()


def log_normal(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x; mean, std² I) = -‖x - mean‖²/(2 std²) - d ln std - (d/2) ln 2π, float64 `[B]` on the CPU."""
    return -squared(x - mean) / (2 * std**2) - x[0].numel() * (math.log(std) + math.log(2 * math.pi) / 2)


def log_bin(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """log of what N(mean, std²) gives to x's bin (x - 1/255, x + 1/255), open at ±1: DDPM eq. 13, float64, x's shape.

    x is read as the grey level it is nearest to, so the bins meet exactly. Φ(upper) - Φ(lower) is formed in logs, and
    in the tail where both are small, so that it never rounds to 0.
    """
    mean = mean.cpu().double()
    level = ((x.cpu().double() + 1) * (WHITE / 2)).round()
    lower = (((2 * level - 1) / WHITE - 1 - mean) / std).masked_fill(level <= 0, -math.inf)
    upper = (((2 * level + 1) / WHITE - 1 - mean) / std).masked_fill(level >= WHITE, math.inf)
    right = lower + upper > 0
    lower, upper = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    most = torch.special.log_ndtr(upper)
    return most + torch.log1p(-(torch.special.log_ndtr(lower) - most).exp())
