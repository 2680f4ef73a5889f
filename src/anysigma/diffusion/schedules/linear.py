"""The schedule of the DDPM paper."""

import torch

from anysigma.diffusion.schedules.base import NoiseSchedule, alpha_from_thousand, check_betas


class Linear(NoiseSchedule):
    """β_t linear from `beta_start` to `beta_end`, DDPM section 4; for T other than 1000 both are scaled by 1000/T.

    The scaling keeps α_T nearly the same for every T from about 50 up; β is capped at 0.999, which T ≤ 20 needs.
    """

    def __init__(self, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        check_betas(T, beta_start, beta_end)
        super().__init__(alpha_from_thousand(torch.linspace(beta_start, beta_end, T, dtype=torch.float64)))
