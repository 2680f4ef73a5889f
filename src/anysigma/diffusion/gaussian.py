"""The Gaussian process behind DDPM and DDIM: forward marginals, the Markov kernel and the family q_σ."""

import torch
from torch import Tensor

from anysigma.diffusion.schedules.base import NoiseSchedule

# A bound met with equality in exact arithmetic (α_T = 0, η = 1) may be missed by a few units in the last place.
ROUNDING = 1e-12


class GaussianProcess:
    """q(x_t | x_0) and everything that follows from it, over one `NoiseSchedule`.

    States are `[B, *shape]` of any float dtype; t and s are a number for the whole batch or `[B]`, in 0..T; between two
    steps the schedule is read by its log-SNR.
    Coefficients are formed in float64 and cast to the state's dtype at the last moment.
    """

    def __init__(self, schedule: NoiseSchedule):
        self.schedule = schedule

    @property
    def T(self) -> int:
        """Number of diffusion steps."""
        return self.schedule.T

    def alpha(self, t: float | Tensor) -> Tensor:
        """α_t, float64."""
        return self.schedule(t)

    def log_snr(self, t: float | Tensor) -> Tensor:
        """ln(α_t/(1-α_t)), float64: ∞ at t = 0, falling, linear between whole t; -∞ at α_T = 0."""
        return self.alpha(t).logit()

    def q_sample(self, x_0: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_t = √α_t x_0 + √(1-α_t) eps ~ q(x_t | x_0), DDIM eq. 4."""
        a = self.alpha(t)
        return like(a.sqrt(), x_0) * x_0 + like((1 - a).sqrt(), x_0) * eps

    def q_step(self, x_s: Tensor, s: float | Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """Mean `[B, *shape]` and variance (broadcastable) of q(x_t | x_s) = N(√(α_t/α_s) x_s, (1-α_t/α_s) I), s ≤ t.

        For s = t-1 this is the Markov kernel of DDPM eq. 2.
        """
        ratio = self.alpha(t) / self.alpha(s)
        return like(ratio.sqrt(), x_s) * x_s, like(1 - ratio, x_s)

    def x_0(self, x_t: Tensor, t: float | Tensor, eps: Tensor) -> Tensor:
        """x_0 = (x_t - √(1-α_t) eps)/√α_t, DDIM eq. 9; not defined at α_t = 0."""
        a = self.alpha(t)
        return (x_t - like((1 - a).sqrt(), x_t) * eps) / like(a.sqrt(), x_t)

    def eps(self, x_t: Tensor, t: float | Tensor, x_0: Tensor) -> Tensor:
        """eps = (x_t - √α_t x_0)/√(1-α_t), the same equation solved for the noise; not defined at t = 0."""
        a = self.alpha(t)
        return (x_t - like(a.sqrt(), x_t) * x_0) / like((1 - a).sqrt(), x_t)

    def posterior_variance(self, t: float | Tensor, s: float | Tensor) -> Tensor:
        """Variance (1-α_s)/(1-α_t) · (1-α_t/α_s) of the Markov chain's q(x_s | x_t, x_0), float64, s ≤ t, t ≥ 1.

        DDPM eq. 7's β̃_t at s = t-1; σ_t(1)² of DDIM eq. 16.
        """
        a_t, a_s = self.alpha(t), self.alpha(s)
        return (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)

    def posterior_mean(self, x_0: Tensor, eps: Tensor, s: float | Tensor, sigma: float | Tensor) -> Tensor:
        """Mean of q_σ(x_s | x_t, x_0) = N(√α_s x_0 + √(1-α_s-σ²) eps, σ² I), DDIM eq. 7.

        `eps` is (x_t - √α_t x_0)/√(1-α_t), so t itself drops out; any s ≤ t. Raises ValueError unless
        0 ≤ σ² ≤ 1-α_s: outside it no member of the family exists, and a clamp would hide that.
        """
        a = self.alpha(s)
        room = 1 - a - torch.as_tensor(sigma, dtype=torch.float64, device=a.device) ** 2
        least = room.min().item() if room.numel() else 0.0
        if not least >= -ROUNDING:
            raise ValueError(f"q_σ(x_s | x_t, x_0) needs σ² ≤ 1-α_s; here 1-α_s-σ² = {least:.3g}")
        return like(a.sqrt(), x_0) * x_0 + like(room.clamp(min=0).sqrt(), x_0) * eps

    def per_v(self, t: float | Tensor, s: float | Tensor, sigma: float = 0.0) -> Tensor:
        """∂x_s/∂v of `posterior_mean` at a given x_t: √α_t √(1-α_s-σ²) - √(1-α_t) √α_s, float64.

        A unit of v is √α_t of eps and -√(1-α_t) of x_0; s may lie above t, as when an image is encoded.
        """
        a_t, a_s = self.alpha(t), self.alpha(s)
        return (a_t * (1 - a_s - sigma**2).clamp(min=0)).sqrt() - ((1 - a_t) * a_s).sqrt()


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A float64 coefficient (scalar or `[B]`), cast to x's dtype, shaped to multiply `[B, *shape]`.

    A scalar stays on the CPU: it goes to a GPU within the product, and the host never waits for a copy.
    """
    coefficient = coefficient.to(x.dtype)
    return coefficient.to(x.device).reshape(-1, *[1] * (x.ndim - 1)) if coefficient.ndim else coefficient
