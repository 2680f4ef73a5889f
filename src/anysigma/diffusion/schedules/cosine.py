"""The schedule of Improved DDPM."""

import math

import torch

from anysigma.diffusion.schedules.base import NoiseSchedule, alpha_from_beta, check_steps


class Cosine(NoiseSchedule):
    """α_t = f(t)/f(0), f(t) = cos²(((t/T + s)/(1 + s)) π/2), Improved DDPM eq. 17, with β capped at `beta_max`.

    The cap keeps α_T above zero, so that predicted x_0 exists at every t.
    """

    def __init__(self, T: int = 1000, s: float = 0.008, beta_max: float = 0.999):
        check_steps(T)
        if s < 0 or not 0 < beta_max < 1:
            raise ValueError(f"cosine needs s ≥ 0 and 0 < beta_max < 1, got s={s} and beta_max={beta_max}")
        t = torch.arange(T + 1, dtype=torch.float64) / T
        f = torch.cos((t + s) / (1 + s) * math.pi / 2).square()
        super().__init__(alpha_from_beta((1 - f[1:] / f[:-1]).clamp(max=beta_max)))
