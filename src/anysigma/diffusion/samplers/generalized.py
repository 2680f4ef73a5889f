"""The generalised step of DDIM: one class, every σ, every τ."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.base import Noise, Step, pairs
from anysigma.diffusion.samplers.sigma import Eta, SigmaRule
from anysigma.diffusion.samplers.tau import Explicit, TauRule, tau_rule

# Above this α_t, q(x_t) is visibly not N(0, I) and pure noise is no valid start there.
SIGNAL_LEFT = 1e-2


@dataclass(frozen=True)
class Generalized:
    """x_s = √α_s f_θ(x_t) + √(1-α_s-σ²) ε_θ(x_t) + std · ε, DDIM eq. 12 along a sub-sequence τ.

    `steps` S: how many of the T steps (null: all); `sigma`: the σ rule; `tau`: a τ rule or an explicit list, which
    brings its own S; `clip`: predicted x_0 is clipped to [-1, 1] and eps derived from it again.
    Raises ValueError for S < 1 and, once T is known, for S > T.
    """

    steps: int | None
    sigma: SigmaRule
    tau: TauRule | Sequence[int]
    clip: bool

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sampler.steps={self.steps}: at least 1 step is needed")
        object.__setattr__(self, "tau", tau_rule(self.tau))

    @classmethod
    def with_eta(cls, steps: int | None, eta: float, tau: TauRule | Sequence[int], clip: bool) -> Self:
        """σ_t(η), DDIM eq. 16: η = 1 is DDPM, η = 0 is DDIM."""
        return cls(steps, Eta(eta), tau, clip)

    def pairs(self, T: int) -> list[tuple[int, int]]:
        """The steps (t, s) from the top down, S of them, the last with s = 0."""
        S = T if self.steps is None else self.steps
        if isinstance(self.tau, Explicit):
            return pairs(self.tau(S, T))
        if S > T:
            raise ValueError(f"sampler.steps={S} is more than schedule.T={T}: at most T steps can be visited")
        return pairs(self.tau(S, T) if S < T else range(1, T + 1))

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise) -> Step:
        """One step t → s, DDIM eq. 12; s = t (a repeat in τ) is the identity. Noise is drawn only where std > 0."""
        prediction = denoiser.clipped(x_t, t) if self.clip else denoiser(x_t, t)
        if s == t:
            return Step(t, s, x_t, prediction.x_0)
        sigma, std = self.sigma(denoiser.process, t, s)
        x_s = denoiser.process.posterior_mean(prediction.x_0, prediction.eps, s, sigma)
        return Step(t, s, x_s + std * noise() if std > 0 else x_s, prediction.x_0)

    def trajectory(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Iterator[Step]:
        """Every step as it is made, from x_T at τ_S down to s = 0."""
        steps = self.pairs(denoiser.process.T)
        warn_of_signal(denoiser.process.alpha(steps[0][0]).item(), steps[0][0])
        x_t = x_T
        for t, s in steps:
            step = self.step(denoiser, x_t, t, s, noise)
            x_t = step.x_s
            yield step

    def __call__(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Tensor:
        """x_0, `[B, *shape]`."""
        for step in self.trajectory(denoiser, x_T, noise):
            x_T = step.x_s
        return x_T

    def encoding(self, denoiser: Denoiser, x_0: Tensor) -> Iterator[Step]:
        """DDIM's encoding, section 4.3: the same step upward along τ with σ = 0, unclipped, as Step(from, to, …).

        The network is asked at `from`, and at τ_1 for the step from 0, whose x_0 is the state itself.
        """
        x_s, q = x_0, denoiser.process
        for t, s in reversed(self.pairs(q.T)):
            if s == t:
                continue
            prediction = denoiser(x_s, s if s > 0 else t)
            f = prediction.x_0 if s > 0 else x_s
            x_s = q.posterior_mean(f, prediction.eps, t, 0.0)
            yield Step(s, t, x_s, f)

    def encode(self, denoiser: Denoiser, x_0: Tensor) -> Tensor:
        """x_{τ_S}, `[B, *shape]`: what `__call__` at η = 0 leads back to x_0, but for the error of the steps."""
        for step in self.encoding(denoiser, x_0):
            x_0 = step.x_s
        return x_0


class Capped(Generalized):
    """As `Generalized`, with S = min(steps, T): for watching a run, whatever its T."""

    def pairs(self, T: int) -> list[tuple[int, int]]:
        """The steps (t, s) from the top down."""
        return Generalized(min(self.steps or T, T), self.sigma, self.tau, self.clip).pairs(T)


def warn_of_signal(alpha: float, t: int) -> None:
    """One line where a start at pure noise is not a sample of q(x_t)."""
    if alpha > SIGNAL_LEFT:
        warnings.warn(
            f"sampling starts at t={t} where α={alpha:.3g} > {SIGNAL_LEFT}: pure noise is no valid start there",
            stacklevel=3,
        )
