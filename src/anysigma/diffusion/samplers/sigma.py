"""σ rules: how much noise a step (t, s) leaves free. Each returns σ of the mean and the std of the added noise."""

from dataclasses import dataclass
from typing import Protocol

from anysigma.diffusion.gaussian import GaussianProcess


class SigmaRule(Protocol):
    """(t, s) → (σ that enters the mean, std of the noise added), plain floats; both 0 at s = 0."""

    def __call__(self, q: GaussianProcess, t: int, s: int) -> tuple[float, float]: ...


@dataclass(frozen=True)
class Eta:
    """σ_t(η) = η √((1-α_s)/(1-α_t)) √(1-α_t/α_s), DDIM eq. 16; η = 1 is DDPM, η = 0 is DDIM.

    Raises ValueError unless 0 ≤ η ≤ 1.
    """

    eta: float

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta}: η must lie in [0, 1] (0: DDIM, 1: DDPM)")

    def __call__(self, q: GaussianProcess, t: int, s: int) -> tuple[float, float]:
        """The same σ twice: the step stays inside the family q_σ."""
        sigma = self.eta * q.posterior_variance(t, s).item() ** 0.5
        return sigma, sigma


@dataclass(frozen=True)
class SigmaHat:
    """σ̂_t = √(1-α_t/α_s), DDIM section 5: DDPM's larger variance, √β_t at s = t-1.

    It lies outside the family q_σ: the mean is that of η = 1, only the noise is larger.
    """

    def __call__(self, q: GaussianProcess, t: int, s: int) -> tuple[float, float]:
        """(σ_t(1), σ̂_t), both 0 at s = 0."""
        sigma = q.posterior_variance(t, s).item() ** 0.5
        return sigma, (1 - q.alpha(t) / q.alpha(s)).item() ** 0.5 if s > 0 else 0.0
