import numpy as np
import pytest
import torch
from conftest import randn

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.schedules.base import NoiseSchedule
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear

ONE, ZERO = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)


def coefficients(q: GaussianProcess, t, s, sigma) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of the posterior mean A x_0 + B x_t, read off by basis inputs."""

    def mean(x_0, x_t):
        return q.posterior_mean(x_0, q.eps(x_t, t, x_0), s, sigma)

    return mean(ONE, ZERO), mean(ZERO, ONE)


def random_steps(T: int, n: int) -> list[tuple[int, int, float]]:
    """(t, s ≤ t, η), the corners first."""
    g = np.random.default_rng(0)
    draws = [(t, int(g.integers(0, t + 1)), float(g.uniform())) for t in map(int, g.integers(1, T + 1, n))]
    return [(1, 0, 1.0), (1, 1, 1.0), (T, T, 0.5), (T, 0, 1.0), (T, 1, 1.0), (T, T - 1, 0.0), *draws]


@pytest.mark.equation("kernel", "marginal")
@pytest.mark.parametrize("kind", [Linear, Cosine])
@pytest.mark.parametrize("T", [10, 1000])
def test_the_markov_chain_composes_to_the_marginal(kind, T):
    q = GaussianProcess(kind(T))
    mean, variance = ONE, torch.zeros((), dtype=torch.float64)
    for t in range(1, T + 1):
        step, added = q.q_step(ONE, t - 1, t)
        mean, variance = step * mean, step.square() * variance + added
        torch.testing.assert_close(mean, q.q_sample(ONE, t, ZERO), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(variance.reshape(1, 1), q.q_sample(ZERO, t, ONE).square(), rtol=0, atol=1e-12)


def test_the_kernel_from_0_is_the_marginal_and_from_t_the_identity(process):
    mean, variance = process.q_step(ONE, 0, 700)
    assert mean.item() == process.q_sample(ONE, 700, ZERO).item()
    assert variance.item() == 1 - process.alpha(700).item()
    mean, variance = process.q_step(ONE, 700, 700)
    assert mean.item() == 1 and variance.item() == 0


def test_at_0_there_is_no_noise(process):
    x_0 = randn(3, 2)
    assert torch.equal(process.q_sample(x_0, 0, randn(3, 2, seed=1)), x_0)


@pytest.mark.equation("predicted")
@pytest.mark.parametrize("t", [1, 2, 500, 999, 1000])
def test_x_0_and_eps_are_the_same_equation_solved_twice(process, t):
    x_0, eps = randn(4, 3, seed=t), randn(4, 3, seed=t + 1)
    x_t = process.q_sample(x_0, t, eps)
    torch.testing.assert_close(process.x_0(x_t, t, eps), x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.eps(x_t, t, x_0), eps, rtol=0, atol=1e-12)


@pytest.mark.equation("lemma")
@pytest.mark.parametrize("schedule", [Linear(1000), Cosine(1000), Linear(10)], ids=["linear", "cosine", "short"])
def test_every_eta_keeps_the_marginals(schedule):
    # x_t ~ q(x_t | x_0) must give x_s ~ q(x_s | x_0): A + B√α_t = √α_s and B²(1-α_t) + σ² = 1-α_s.
    q = GaussianProcess(schedule)
    for t, s, eta in random_steps(q.T, 200):
        a_t, a_s = q.alpha(t), q.alpha(s)
        sigma, std = Eta(eta)(q, t, s)
        A, B = coefficients(q, t, s, sigma)
        assert sigma == std
        assert abs(A + B * a_t.sqrt() - a_s.sqrt()) < 1e-12, (t, s, eta)
        assert abs(B**2 * (1 - a_t) + std**2 - (1 - a_s)) < 1e-12, (t, s, eta)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_every_sigma_up_to_its_bound_keeps_the_marginals(process, share):
    t, s = 700, 300
    sigma = (share * (1 - process.alpha(s).item())) ** 0.5
    A, B = coefficients(process, t, s, sigma)
    assert abs(A + B * process.alpha(t).sqrt() - process.alpha(s).sqrt()) < 1e-12
    assert abs(B**2 * (1 - process.alpha(t)) + sigma**2 - (1 - process.alpha(s))) < 1e-12


def test_eta_1_is_the_posterior_of_ddpm(process):
    # DDPM eq. 7 in its own letters, from its own β.
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    for t in range(1, 1001):
        b, now, before = beta[t - 1], bar[t], bar[t - 1]
        sigma, std = Eta(1.0)(process, t, t - 1)
        A, B = coefficients(process, t, t - 1, sigma)
        assert A.item() == pytest.approx(before**0.5 * b / (1 - now), rel=1e-9, abs=1e-12), t
        assert B.item() == pytest.approx((1 - b) ** 0.5 * (1 - before) / (1 - now), rel=1e-9, abs=1e-12), t
        assert std**2 == pytest.approx((1 - before) / (1 - now) * b, rel=1e-9, abs=1e-15), t


def test_eta_0_has_no_noise_and_eta_scales_sigma(process):
    assert Eta(0.0)(process, 700, 300) == (0, 0)
    assert Eta(0.25)(process, 700, 300)[0] == pytest.approx(0.25 * Eta(1.0)(process, 700, 300)[0], rel=1e-14)


@pytest.mark.parametrize("s, sigma", [(300, 1.0), (0, 1e-5), (1000, 1.0)])
def test_a_sigma_outside_the_family_is_refused(process, s, sigma):
    with pytest.raises(ValueError, match="σ² ≤ 1-α_s"):
        process.posterior_mean(ONE, ONE, s, sigma)


def test_one_sigma_outside_the_family_among_many_is_refused(process):
    with pytest.raises(ValueError, match="σ² ≤ 1-α_s"):
        process.posterior_mean(randn(2, 1), randn(2, 1), torch.tensor([900, 1]), torch.tensor([0.5, 0.5]))


def test_a_bound_met_with_equality_is_accepted():
    # α_T = 0 and η = 1: σ² is 1-α_s but for rounding, and the root of -1e-17 must not become NaN.
    q = GaussianProcess(NoiseSchedule(torch.linspace(1, 0, 38, dtype=torch.float64)))
    for s in range(37):
        mean = q.posterior_mean(ONE, 7 * ONE, s, Eta(1.0)(q, 37, s)[0])
        assert mean.item() == pytest.approx(q.alpha(s).sqrt().item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("t, s", [(7, 3), (torch.tensor([7, 9]), torch.tensor([3, 2]))], ids=["int", "tensor"])
def test_the_dtype_of_the_state_is_kept(short, dtype, t, s):
    x, eps = randn(2, 1, 4, 4, dtype=dtype), randn(2, 1, 4, 4, seed=1, dtype=dtype)
    results = [short.q_sample(x, t, eps), *short.q_step(x, s, t), short.x_0(x, t, eps), short.eps(x, t, x)]
    results.append(short.posterior_mean(x, eps, s, 0.1))
    assert [r.dtype for r in results] == [dtype] * 6


def test_a_row_of_t_is_what_an_int_gives_that_row(short):
    x, eps = randn(4, 1, 2, 3), randn(4, 1, 2, 3, seed=1)
    t, s, sigma = torch.tensor([10, 3, 7, 1]), torch.tensor([2, 1, 6, 0]), torch.tensor([0.3, 0.01, 0.2, 0.0])
    rows = {
        "q_sample": short.q_sample(x, t, eps),
        "q_step": short.q_step(x, s, t)[0],
        "q_step variance": short.q_step(x, s, t)[1],
        "x_0": short.x_0(x, t, eps),
        "eps": short.eps(x, t, eps),
        "posterior_mean": short.posterior_mean(x, eps, s, sigma),
    }
    for i in range(4):
        x_i, eps_i, t_i, s_i = x[i : i + 1], eps[i : i + 1], int(t[i]), int(s[i])
        ints = {
            "q_sample": short.q_sample(x_i, t_i, eps_i),
            "q_step": short.q_step(x_i, s_i, t_i)[0],
            "q_step variance": short.q_step(x_i, s_i, t_i)[1],
            "x_0": short.x_0(x_i, t_i, eps_i),
            "eps": short.eps(x_i, t_i, eps_i),
            "posterior_mean": short.posterior_mean(x_i, eps_i, s_i, sigma[i].item()),
        }
        for name, value in ints.items():
            assert torch.equal(rows[name][i].flatten(), value.flatten()), (name, i)
