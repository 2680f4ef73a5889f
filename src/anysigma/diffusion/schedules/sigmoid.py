"""The schedule whose β follows a sigmoid."""

import torch

from anysigma.diffusion.schedules.base import NoiseSchedule, alpha_from_thousand, check_betas


class Sigmoid(NoiseSchedule):
    """β_t = beta_start + (beta_end - beta_start) sigmoid(x), x linear from -6 to 6; `sigmoid` of the DDIM code.

    For T other than 1000 every β is scaled by 1000/T, capped at 0.999.
    """

    def __init__(self, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        check_betas(T, beta_start, beta_end)
        ramp = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid()
        super().__init__(alpha_from_thousand(beta_start + (beta_end - beta_start) * ramp))
