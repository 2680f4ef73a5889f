"""Denoisers whose optimal answer is known in closed form: for data that are a mixture of Gaussians, or single points."""

import torch
from torch import Tensor, nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess, like
from anysigma.diffusion.parameterizations import Eps, Parameterization


class ExactNetwork(nn.Module):
    """The optimal output for data Σ_k 1/K N(m_k, v I), computed in float64 whatever the dtype of x_t.

    Given x_t and the component k, x_0 and x_t are jointly Gaussian, so with c = α_t v + 1-α_t
    E[x_0 | x_t, k] = m_k + √α_t v/c (x_t - √α_t m_k) and E[eps | x_t, k] = √(1-α_t)/c (x_t - √α_t m_k).
    A target is linear in (x_0, eps), so its conditional mean is the target of the conditional means.
    """

    def __init__(self, process: GaussianProcess, means: Tensor, v: float, parameterization: Parameterization):
        super().__init__()
        # A parameter, since a denoiser's device is that of its parameters.
        self.means = nn.Parameter(means.to(torch.float64), requires_grad=False)
        self.v, self.process, self.parameterization = v, process, parameterization

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        x_0, eps = self.posterior_means(x_t.to(torch.float64), t)
        return self.parameterization.target(self.process, x_0, t, eps)

    def posterior_means(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        a = like(self.process.alpha(t), x_t)
        c = a * self.v + 1 - a
        residual = x_t - a.sqrt() * self.means[:, None]  # [K, B, *shape]
        weight = (-(residual.square() / (2 * c)).flatten(2).sum(2)).softmax(0)
        residual = (weight.reshape(*weight.shape, *[1] * (x_t.ndim - 1)) * residual).sum(0)
        mean = torch.einsum("kb,k...->b...", weight, self.means)
        return mean + a.sqrt() * self.v / c * residual, (1 - a).sqrt() / c * residual


class ExactDenoiser(Denoiser):
    """A `Denoiser` without error: predicted eps and x_0 are the conditional means given x_t, in closed form."""

    def __init__(self, process: GaussianProcess, means: Tensor, v: float, parameterization: Parameterization | None = None):
        parameterization = parameterization or Eps()
        super().__init__(ExactNetwork(process, means, v, parameterization), process, parameterization)


def point_mass(process: GaussianProcess, x: Tensor, parameterization: Parameterization | None = None) -> ExactDenoiser:
    """All data are the one image x, `[*shape]`."""
    return ExactDenoiser(process, x[None], 0.0, parameterization)


def gaussian(
    process: GaussianProcess, m: Tensor, v: float, parameterization: Parameterization | None = None
) -> ExactDenoiser:
    """Data N(m, v I), m `[*shape]`."""
    return ExactDenoiser(process, m[None], v, parameterization)


def mixture(
    process: GaussianProcess, means: Tensor, v: float, parameterization: Parameterization | None = None
) -> ExactDenoiser:
    """Data Σ_k 1/K N(means[k], v I), means `[K, *shape]`."""
    return ExactDenoiser(process, means, v, parameterization)
