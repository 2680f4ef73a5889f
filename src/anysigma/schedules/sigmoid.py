"""The schedule whose β follows a sigmoid."""

import torch

from anysigma.schedules.base import NoiseSchedule, alpha_from_beta


class Sigmoid(NoiseSchedule):
    """β_t = beta_start + (beta_end - beta_start) sigmoid(x), x linear from -6 to 6; `sigmoid` of the DDIM code.

    For T other than 1000 every β is scaled by 1000/T, capped at 0.999.
    """

    def __init__(self, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02):
        if T < 1:
            raise ValueError(f"schedule.T={T}: a process needs at least 1 step")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"β must satisfy 0 < beta_start ≤ beta_end < 1, got {beta_start} and {beta_end}")
        ramp = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid()
        beta = (beta_start + (beta_end - beta_start) * ramp) * (1000 / T)
        super().__init__(alpha_from_beta(beta.clamp(max=0.999)))
