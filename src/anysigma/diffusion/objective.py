"""The objective that DDPM and DDIM share: L_γ, the rules that give γ, and the rules that draw t."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess, like
from anysigma.diffusion.parameterizations import Parameterization


class Gamma(Protocol):
    """A rule for the weight of each t."""

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """w_t = γ_t · eps_scale_t², float64 `[B]`: what multiplies the squared error of the network's output.

        Where γ_t grows as 1/α_t it is formed as (γ_t α_t) · v_scale_t², which is finite at α_T = 0.
        """
        ...


class Simple:
    """γ_t = 1: L_simple, DDPM eq. 14."""

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """eps_scale_t²."""
        return parameterization.eps_scale(q, t).square()


class VMSE:
    """γ_t = 1/α_t: the plain mean squared error of v, Salimans & Ho 2022 section 4 ("SNR + 1" in x_0)."""

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """v_scale_t²."""
        return parameterization.v_scale(q, t).square()


@dataclass(frozen=True)
class MinSNR:
    """γ_t = min(1, γ_max/SNR_t), SNR_t = α_t/(1-α_t): min(SNR, γ_max) in x_0, Hang et al. 2023 section 3.4.

    With v the weight is min(SNR, γ_max)/(SNR + 1), which is 0 at α_T = 0, as for every bounded γ.
    """

    gamma_max: float = 5.0

    def __post_init__(self):
        if not self.gamma_max > 0:
            raise ValueError(f"objective.gamma.gamma_max={self.gamma_max}: no step would be trained; it must be > 0")

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """γ_t eps_scale_t²."""
        a = q.alpha(t)
        return (self.gamma_max * (1 - a) / a).clamp(max=1) * parameterization.eps_scale(q, t).square()


@dataclass(frozen=True)
class P2:
    """γ_t = 1/(k + SNR_t)^gamma, SNR_t = α_t/(1-α_t), Choi et al. 2022 eq. 8, relative to γ_t = 1."""

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self):
        if not (self.k > 0 and self.gamma >= 0):
            raise ValueError(f"p2 needs k > 0 and gamma ≥ 0, got k={self.k} and gamma={self.gamma}")

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """γ_t eps_scale_t²."""
        a = q.alpha(t)
        return (self.k + a / (1 - a)) ** -self.gamma * parameterization.eps_scale(q, t).square()


def first_variance(q: GaussianProcess) -> float:
    """σ_1² := β̃_2, the variance of p_θ(x_0 | x_1), where every σ rule says 0: the official DDPM code's, for σ and σ̂ alike.

    Raises ValueError for T = 1, which has no β̃_2.
    """
    if q.T < 2:
        raise ValueError(f"schedule.T={q.T}: p_θ(x_0 | x_1) takes its variance from t = 2; the bound needs T ≥ 2")
    return q.posterior_variance(2, 1).item()


@dataclass(frozen=True)
class Elbo:
    """γ_t = (√(α_s(1-α_t)/α_t) - √(1-α_s-σ²))²/(2σ²), s = t-1, σ = σ_t(η): KL(q_σ ‖ p_θ) of DDIM eq. 11, in nats.

    At η = 1 it is DDPM eq. 12 with σ² = β̃. γ_1 = (1-α_1)/(2 σ_1² α_1), σ_1² = β̃_2, whatever η.
    Raises ValueError unless 0 < η ≤ 1 (σ = 0 has no KL) and, once the process is known, for T = 1 (no β̃_2).
    """

    eta: float = 1.0

    def __post_init__(self):
        if not 0 < self.eta <= 1:
            raise ValueError(f"objective.gamma.eta={self.eta}: the weight of the bound needs η in (0, 1]")

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """(γ_t α_t) v_scale_t²."""
        first = first_variance(q)
        a_t, a_s = q.alpha(t), q.alpha(t - 1)
        variance = self.eta**2 * q.posterior_variance(t, t - 1)
        room = (1 - a_s - variance).clamp(min=0)  # 0 at α_T = 0 and η = 1, but for rounding
        difference = (a_s * (1 - a_t)).sqrt() - (a_t * room).sqrt()
        return difference.square() / (2 * variance.where(t > 1, first)) * parameterization.v_scale(q, t).square()


class ElboBeta:
    """γ_t = β_t²/(2 σ_t² (1-β_t)(1-α_t)) with σ_t² = β_t, DDPM eq. 12: the mean of η = 1 under the larger variance σ̂².

    γ_1 = (1-α_1)/(2 σ_1² α_1), σ_1² = β̃_2, as for `Elbo` and as in the bound under σ̂.
    Raises ValueError, once the process is known, for T = 1.
    """

    def weight(self, q: GaussianProcess, t: Tensor, parameterization: Parameterization) -> Tensor:
        """(γ_t α_t) v_scale_t²; with β_t = 1 - α_t/α_s, γ_t α_t = β_t (α_s - α_t)/(2 σ_t² (1-α_t))."""
        first = first_variance(q)
        a_t, a_s = q.alpha(t), q.alpha(t - 1)
        beta = 1 - a_t / a_s
        ratio = beta / beta.where(t > 1, first)  # 1, but for t = 1
        return ratio * (a_s - a_t) / (2 * (1 - a_t)) * parameterization.v_scale(q, t).square()


class Draw(Protocol):
    """(u, T) → t long `[B]` in 1..T and the weight 1/(T p(t)), `[B]`; u float `[B]`, independent and uniform on [0, 1)."""

    def __call__(self, u: Tensor, T: int) -> tuple[Tensor, Tensor]: ...


def nth(u: Tensor, T: int) -> Tensor:
    """1 + ⌊u T⌋, long `[B]`: uniform on 1..T where u is on [0, 1). Rounding can carry u T to T."""
    return (1 + (u * T).long()).clamp(1, T)


@dataclass(frozen=True)
class Uniform:
    """t ~ uniform on 1..T, each by itself, DDPM algorithm 1."""

    def __call__(self, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """The weight is 1."""
        return nth(u, T), torch.ones(len(u), device=u.device)


@dataclass(frozen=True)
class Stratified:
    """t = 1 + ⌊u' T⌋ with one u' in each [i-1, i)/B, in random order: each t is uniform on 1..T, a batch covers them all.

    u' lies in the part that the rank of its u says. Where in it: with u_(1) < … < u_(B) < u_(B+1) := 1, the numbers
    (u_(i)/u_(i+1))^i are independent and uniform on [0, 1), and the ranks are independent of them (Malmquist 1950).
    """

    def __call__(self, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """The weight is 1."""
        B, (u, order) = len(u), u.sort()
        i = torch.arange(1, B + 1, device=u.device)
        within = (u / torch.cat([u[1:], u.new_ones(1)])) ** i
        return nth((i - 1 + within) / B, T)[order.argsort()], torch.ones(B, device=u.device)


UNIFORM = Uniform()


class LGamma:
    """L_γ = Σ_t γ_t E‖ε_θ(√α_t x_0 + √(1-α_t) eps, t) - eps‖², DDIM eq. 5, as a mean over t and pixels.

    The mean over a batch estimates L_γ/(T·d), d = C·H·W.
    """

    def __init__(self, gamma: Gamma, draw: Draw = UNIFORM):
        self.gamma, self.draw = gamma, draw

    def __call__(self, denoiser: Denoiser, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """γ_t · mean over pixels of the squared eps error, `[B]`, for x_0, eps `[B, C, H, W]`, t long `[B]` in 1..T."""
        q, parameterization = denoiser.process, denoiser.parameterization
        output = denoiser.output(q.q_sample(x_0, t, eps), t)
        error = output - parameterization.target(q, x_0, t, eps)
        weight = like(self.gamma.weight(q, t, parameterization), x_0).flatten()
        return weight * error.square().flatten(1).mean(1)

    def draw_t(self, u: Tensor, T: int) -> tuple[Tensor, Tensor]:
        """t, long `[B]` in 1..T, and the weight 1/(T p(t)), `[B]`, of a whole batch's u `[B]`, uniform on [0, 1)."""
        return self.draw(u, T)
