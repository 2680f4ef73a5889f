"""The schedule that is linear in √β: `quad` of the DDIM code, `scaled_linear` of Stable Diffusion."""

import torch

from anysigma.schedules.base import NoiseSchedule, alpha_from_beta


class Quadratic(NoiseSchedule):
    """√β_t linear from √`beta_start` to √`beta_end`; for T other than 1000 every β is scaled by 1000/T, capped at 0.999."""

    def __init__(self, T: int, beta_start: float, beta_end: float):
        if T < 1:
            raise ValueError(f"schedule.T={T}: a process needs at least 1 step")
        if not 0 < beta_start <= beta_end < 1:
            raise ValueError(f"β must satisfy 0 < beta_start ≤ beta_end < 1, got {beta_start} and {beta_end}")
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        super().__init__(alpha_from_beta((root.square() * (1000 / T)).clamp(max=0.999)))
