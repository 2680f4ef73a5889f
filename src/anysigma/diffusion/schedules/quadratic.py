"""The schedule that is linear in √β: `quad` of the DDIM code, `scaled_linear` of Stable Diffusion."""

import torch

from anysigma.diffusion.schedules.base import NoiseSchedule, alpha_from_thousand, check_betas


class Quadratic(NoiseSchedule):
    """√β_t linear from √`beta_start` to √`beta_end`; for T other than 1000 every β is scaled by 1000/T, capped at 0.999."""

    def __init__(self, T: int, beta_start: float, beta_end: float):
        check_betas(T, beta_start, beta_end)
        root = torch.linspace(beta_start**0.5, beta_end**0.5, T, dtype=torch.float64)
        super().__init__(alpha_from_thousand(root.square()))
