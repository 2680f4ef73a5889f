"""The joint q_σ(x_{1:T} | x_0), drawn: the inference process that the family of samplers inverts."""

from collections.abc import Iterator

from torch import Tensor

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.base import Noise
from anysigma.diffusion.samplers.sigma import SigmaRule


def joint(q: GaussianProcess, x_0: Tensor, sigma: SigmaRule, noise: Noise) -> Iterator[tuple[int, Tensor]]:
    """(t, x_t) for t = T..1: x_T ~ q(x_T | x_0), then x_{t-1} ~ q_σ(x_{t-1} | x_t, x_0), DDIM eq. 6 and 7.

    `noise()` returns ε of x_0's shape and is called only where it is used. Raises ValueError for a rule outside the
    family (σ̂), under which x_t would not follow q(x_t | x_0).
    """
    x_t = q.q_sample(x_0, q.T, noise())
    yield q.T, x_t
    for t in range(q.T, 1, -1):
        s = t - 1
        spread, std = sigma(q, t, s)
        if spread != std:
            raise ValueError(f"sigma={sigma}: σ of the mean and of the noise differ, so it is no member of q_σ")
        x_t = q.posterior_mean(x_0, q.eps(x_t, t, x_0), s, spread)
        x_t = x_t + std * noise() if std > 0 else x_t
        yield s, x_t
