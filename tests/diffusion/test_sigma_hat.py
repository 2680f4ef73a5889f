import math

import numpy as np
import pytest
import torch
from conftest import gaussian, no_noise, point_mass, randn
from test_samplers import law

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Trailing, Uniform
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

TAUS = [(None, Uniform()), (20, Trailing()), (50, Uniform()), (None, [1000, 970, 500, 20, 3, 1])]


def sampler(tau, sigma=None) -> Generalized:
    return Generalized(steps=tau[0], sigma=sigma or SigmaHat(), tau=tau[1], clip=False, limit=None)


def test_at_all_steps_it_is_the_root_of_beta(process):
    beta = np.linspace(1e-4, 0.02, 1000)
    for t in range(2, 1001):
        assert SigmaHat()(process, t, t - 1)[1] == pytest.approx(beta[t - 1] ** 0.5, rel=1e-10)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_at_0_both_numbers_are_0_and_nothing_is_drawn(process, t):
    assert SigmaHat()(process, t, 0) == (0, 0)
    x_t = randn(2, 1)
    step = sampler((None, [t])).step(gaussian(process, torch.zeros(1), 0.3), x_t, t, 0, no_noise, ())
    assert torch.equal(step.x_s, step.x_0)


@pytest.mark.parametrize("tau", TAUS, ids=str)
def test_the_mean_is_that_of_eta_1_and_the_noise_is_larger(process, tau):
    for t, s in sampler(tau).pairs(1000)[:-1]:
        sigma, std = SigmaHat()(process, t, s)
        assert sigma == Eta(1.0)(process, t, s)[0] and std > sigma
        assert std**2 == pytest.approx(1 - process.alpha(t).item() / process.alpha(s).item(), rel=1e-12)


@pytest.mark.parametrize("tau", TAUS, ids=str)
def test_gaussian_data_follow_their_recursion(process, tau):
    m, v = 0.7, 0.3
    found = law(sampler(tau), gaussian(process, torch.full((1,), m, dtype=torch.float64), v))
    alpha, mean, variance = process.schedule.alpha.tolist(), 0.0, 1.0
    for (t, s), (reached, *moments) in zip(sampler(tau).pairs(1000), found, strict=True):
        a_t, a_s = alpha[t], alpha[s]
        c, sigma2 = a_t * v + 1 - a_t, (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        slope = math.sqrt(a_s) * math.sqrt(a_t) * v / c + math.sqrt(max(1 - a_s - sigma2, 0)) * math.sqrt(1 - a_t) / c
        mean = math.sqrt(a_s) * m + slope * (mean - math.sqrt(a_t) * m)
        variance = slope**2 * variance + (1 - a_t / a_s if s > 0 else 0)
        assert reached == s and moments == pytest.approx([mean, variance], abs=1e-10), s


@pytest.mark.equation("sigma-hat")
@pytest.mark.parametrize("t, s", [(1000, 999), (1000, 500), (500, 20), (20, 3), (2, 1)])
def test_one_step_from_the_true_marginal_has_exactly_the_excess(process, t, s):
    # With x_0 known and x_t ~ q(x_t | x_0), η = 1 gives variance 1-α_s; σ̂ gives σ̂² - σ² more and the same mean.
    x, eps, noise = randn(1), torch.eye(3, dtype=torch.float64)[:, :1], torch.eye(3, dtype=torch.float64)[:, 1:2]
    x_t = process.q_sample(x.expand(3, 1), t, eps)
    reached = {}
    for rule in (Eta(1.0), SigmaHat()):
        x_s = sampler((None, [t]), rule).step(point_mass(process, x), x_t, t, s, lambda: noise, ()).x_s
        reached[rule] = (x_s[2].item(), (x_s[:2] - x_s[2]).square().sum().item())
    (mean, variance), (mean_hat, variance_hat) = reached.values()
    sigma, std = SigmaHat()(process, t, s)
    assert mean_hat == mean == pytest.approx(process.alpha(s).sqrt().item() * x.item(), abs=1e-10)
    assert variance == pytest.approx(1 - process.alpha(s).item(), abs=1e-12)
    assert variance_hat - variance == pytest.approx(std**2 - sigma**2, abs=1e-12)


def test_it_is_finite_where_no_signal_is_left():
    q = GaussianProcess(ZeroTerminalSNR(Linear()))
    sigma, std = SigmaHat()(q, 1000, 900)
    assert sigma == pytest.approx((1 - q.alpha(900).item()) ** 0.5) and std == 1


@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_a_repeat_is_the_identity(process):
    x_t = randn(2, 1)
    for rule in (Eta(1.0), SigmaHat()):
        chosen = Generalized(steps=None, sigma=rule, tau=[1, 1], clip=True)
        step = next(chosen.trajectory(point_mass(process, randn(1)), x_t, no_noise))
        assert torch.equal(step.x_s, x_t)
