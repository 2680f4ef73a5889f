"""DPM-Solver++(2M): two steps remembered in place of one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Parameterization
from anysigma.diffusion.samplers.amplification import per_output
from anysigma.diffusion.samplers.base import AlongTau, Noise, Step


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(AlongTau):
    """DDIM's step at η = 0 with x_0 led on along log-SNR: DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095) algorithm 2.

    D = x_0 + h_t/(2 h_before) (x_0 - x_0 of the step before), h half a step's growth of log-SNR. The first step, and the
    last, where log-SNR grows without bound, have D = x_0.
    """

    memory = 1

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise, before: tuple[Step, ...]) -> Step:
        """One step t → s; no noise is drawn."""
        q, (eps, x_0) = denoiser.process, self.predict(denoiser, x_t, t)
        D = x_0
        if before and s > 0:
            D = x_0 + share(q, before[0].t, t, s) * (x_0 - before[0].x_0)
        return Step(t, s, q.posterior_mean(D, q.eps(x_t, t, D), s, 0.0), x_0, eps)

    def amplification(
        self, q: GaussianProcess, parameterization: Parameterization, t: int, s: int, before: tuple[int, ...]
    ) -> float:
        """The larger of |∂x_s/∂o| at t and at the step before, r = h_t/(2 h_before).

        At t it is DDIM's, 1 + r times. The output before reaches x_s by r alone, through x_0: per unit of D, x_s moves by
        -per_v(t, s)/√(1-α_t), and per unit of that output x_0 moves by -√(1-α_before) v_scale(before).
        """
        now = per_output(q, parameterization, t, s)
        if not before or s == 0:
            return now
        r, per_D = share(q, before[0], t, s), q.per_v(t, s) / (1 - q.alpha(t)).sqrt()
        earlier = (1 - q.alpha(before[0])).sqrt() * parameterization.v_scale(q, torch.tensor([before[0]]))
        return max((1 + r) * now, r * (per_D * earlier).abs().item())


def share(q: GaussianProcess, before: int, t: int, s: int) -> float:
    """h_t/(2 h_before), h the growth of log-SNR in the steps t → s and before → t."""
    growth, growth_before = q.log_snr(s) - q.log_snr(t), q.log_snr(t) - q.log_snr(before)
    return (growth / (2 * growth_before)).item()
