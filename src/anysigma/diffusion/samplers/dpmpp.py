"""DPM-Solver++(2M): two steps remembered in place of one."""

from dataclasses import dataclass

from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
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
            growth, growth_before = q.log_snr(s) - q.log_snr(t), q.log_snr(t) - q.log_snr(before[0].t)
            D = x_0 + (growth / (2 * growth_before)).item() * (x_0 - before[0].x_0)
        return Step(t, s, q.posterior_mean(D, q.eps(x_t, t, D), s, 0.0), x_0, eps)
