"""The generalised step of DDIM: one class, every σ, every τ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Parameterization
from anysigma.diffusion.samplers.amplification import LIMIT, Amplified, per_output, refuse
from anysigma.diffusion.samplers.base import AlongTau, Noise, Step
from anysigma.diffusion.samplers.sigma import Eta, SigmaRule
from anysigma.diffusion.samplers.tau import TauRule


@dataclass(frozen=True, kw_only=True)
class Generalized(AlongTau):
    """x_s = √α_s f_θ(x_t) + √(1-α_s-σ²) ε_θ(x_t) + std · ε, DDIM eq. 12 along a sub-sequence τ.

    `sigma`: the σ rule; the rest as for `AlongTau`.
    """

    sigma: SigmaRule

    @classmethod
    def with_eta(
        cls, steps: int | None, eta: float, tau: TauRule | Sequence[int], clip: bool, limit: float | None = LIMIT
    ) -> Self:
        """σ_t(η), DDIM eq. 16: η = 1 is DDPM, η = 0 is DDIM."""
        return cls(steps=steps, sigma=Eta(eta), tau=tau, clip=clip, limit=limit)

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise, before: tuple[Step, ...]) -> Step:
        """One step t → s, DDIM eq. 12. Noise is drawn only where std > 0."""
        eps, x_0 = self.predict(denoiser, x_t, t)
        sigma, std = self.sigma(denoiser.process, t, s)
        x_s = denoiser.process.posterior_mean(x_0, eps, s, sigma)
        return Step(t, s, x_s + std * noise() if std > 0 else x_s, x_0, eps)

    def amplification(
        self, q: GaussianProcess, parameterization: Parameterization, t: int, s: int, before: tuple[int, ...]
    ) -> float:
        """|∂x_s/∂o| of DDIM eq. 12 with the σ of the mean."""
        return per_output(q, parameterization, t, s, self.sigma(q, t, s)[0])

    def amplified_upward(self, q: GaussianProcess, parameterization: Parameterization) -> list[Amplified]:
        """What every step of `encoding` makes of the output's error, from the bottom up.

        The step from 0, whose x_0 is the state itself, is left out: √(1-α_t) eps_scale(t) is at most 1.
        """
        moving = [(s, t) for t, s in reversed(self.pairs(q.T)) if 0 < s < t]
        return [Amplified(per_output(q, parameterization, s, t), s, t) for s, t in moving]

    def check_encoding(self, q: GaussianProcess, parameterization: Parameterization) -> None:
        """Raises `Amplifies` where a step upward, which is never clipped, goes beyond `limit`."""
        refuse(self, q, parameterization, lambda sampler, read: sampler.amplified_upward(q, read), [])

    def encoding(self, denoiser: Denoiser, x_0: Tensor) -> Iterator[Step]:
        """DDIM's encoding, section 4.3: the same step upward along τ with σ = 0, unclipped, as Step(from, to, …).

        The network is asked at `from`, and at τ_1 for the step from 0, whose x_0 is the state itself.
        """
        self.check_encoding(denoiser.process, denoiser.parameterization)
        x_s, q = x_0, denoiser.process
        for t, s in reversed(self.pairs(q.T)):
            if s == t:
                continue
            prediction = denoiser(x_s, s if s > 0 else t)
            f = prediction.x_0 if s > 0 else x_s
            x_s = q.posterior_mean(f, prediction.eps, t, 0.0)
            yield Step(s, t, x_s, f, prediction.eps)

    def encode(self, denoiser: Denoiser, x_0: Tensor) -> Tensor:
        """x_{τ_S}, `[B, *shape]`: what `__call__` at η = 0 leads back to x_0, but for the error of the steps."""
        for step in self.encoding(denoiser, x_0):
            x_0 = step.x_s
        return x_0
