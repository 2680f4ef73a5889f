"""Another schedule, rescaled so that no signal is left at T."""

import torch

from anysigma.diffusion.schedules.base import NoiseSchedule


class ZeroTerminalSNR(NoiseSchedule):
    """√α_t → √α_1 (√α_t - √α_T)/(√α_1 - √α_T) for t ≥ 1: α_T = 0, α_1 kept, Lin et al. 2024 algorithm 1.

    Pure noise is then exactly x_T, but eps no longer tells x_0 at T: it needs parameterization=v or x0.
    """

    def __init__(self, schedule: NoiseSchedule):
        if schedule.T < 2:
            raise ValueError(f"schedule.T={schedule.T}: zero_terminal_snr needs at least 2 steps, to keep α_1 above α_T = 0")
        root = schedule.alpha[1:].sqrt()
        root = root[0] * ((root - root[-1]) / (root[0] - root[-1]))
        super().__init__(torch.cat([schedule.alpha[:1], root.square()]))
