"""The schedule of the DDPM paper."""

import torch

from anysigma.schedules.base import NoiseSchedule, alpha_from_beta


class Linear(NoiseSchedule):
    """β_t linear from `beta_start` to `beta_end`, DDPM section 4; for T other than 1000 both are scaled by 1000/T.

    The scaling keeps α_T nearly the same for every T from about 50 up; β is capped at 0.999, which T ≤ 20 needs.
    """

    def __init__(self, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        if T < 1:
            raise ValueError(f"schedule.T={T}: a process needs at least 1 step")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"β must satisfy 0 < beta_start ≤ beta_end < 1, got {beta_start} and {beta_end}")
        beta = torch.linspace(beta_start, beta_end, T, dtype=torch.float64) * (1000 / T)
        super().__init__(alpha_from_beta(beta.clamp(max=0.999)))
