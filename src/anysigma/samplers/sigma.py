"""σ rules: how much noise a step (t, s) leaves free. Each returns σ of the mean and the std of the added noise."""

from dataclasses import dataclass
from typing import Protocol

from anysigma.gaussian import GaussianProcess


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
        a_t, a_s = q.alpha(t).item(), q.alpha(s).item()
        sigma = self.eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)) ** 0.5
        return sigma, sigma
