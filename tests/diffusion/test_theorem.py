"""The bound, its terms and J_σ = L_γ + C, without a drawn number: under an affine network all is Gaussian.

A state is rows `[1 + noises, 1]`: row 0 is what it is without noise, row j what a 1 in the j-th noise makes of it. Under
an affine network E[r²] of any difference r of states is r_0² + Σ_j (r_j - r_0)², to the last digits of float64.
"""

import math

import pytest
import torch
from conftest import CountingNoise, randn
from torch.distributions import MultivariateNormal, kl_divergence

from anysigma.diffusion.bound import Bound
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import Elbo, LGamma
from anysigma.diffusion.samplers.joint import joint
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear

SCHEDULES = {"linear": Linear(7, beta_end=5e-3), "cosine": Cosine(7), "signal at T": Linear(7, beta_end=1e-3)}
X_0 = 0.6


@pytest.fixture(params=SCHEDULES)
def q(request) -> GaussianProcess:
    return GaussianProcess(SCHEDULES[request.param])


@pytest.fixture(params=[0.3, 1.0])
def eta(request) -> float:
    return request.param


def affine(q: GaussianProcess, seed: int) -> Denoiser:
    """ε_θ(x, t) = a_t x + b_t, wrong at every t."""
    a, b = 0.5 * randn(2, q.T + 1, seed=seed)
    return Denoiser.of(lambda x, t: a[t][:, None] * x + b[t][:, None], q.schedule)


def sigmas(q: GaussianProcess, eta: float) -> list[float]:
    """σ_1..σ_T at index 1..T by DDIM eq. 16, σ_1 that of DDPM's β̃_2."""
    a = q.schedule.alpha.tolist()
    tilde = [(1 - a[t - 1]) / (1 - a[t]) * (1 - a[t] / a[t - 1]) for t in range(1, q.T + 1)]
    return [math.nan, tilde[1] ** 0.5, *(eta * one**0.5 for one in tilde[1:])]


def drawn(q: GaussianProcess, eta: float) -> dict[int, torch.Tensor]:
    """t → rows of x_t ~ q_σ(x_{1:T} | x_0 = X_0), and of x_0 itself."""
    noise = CountingNoise((1 + q.T, 1), torch.eye(1 + q.T, dtype=torch.float64)[1:, :, None])
    x_0 = torch.full((1 + q.T, 1), X_0, dtype=torch.float64)
    return {0: x_0, **dict(joint(q, x_0, Eta(eta), noise))}


def second_moment(r: torch.Tensor) -> float:
    """E[r²] from rows."""
    return (r[0].square() + (r[1:] - r[0]).square().sum(0)).item()


def expected_log(x: torch.Tensor, mean: torch.Tensor, std: float) -> float:
    """E log N(x; mean, std²), x and mean as rows."""
    return -second_moment(x - mean) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2


def q_mean(a: list[float], t: int, s: int, sigma: float, x_0, x_t):
    """Mean of q_σ(x_s | x_t, x_0), DDIM eq. 7 by hand."""
    eps = (x_t - math.sqrt(a[t]) * x_0) / math.sqrt(1 - a[t])
    return math.sqrt(a[s]) * x_0 + math.sqrt(max(1 - a[s] - sigma**2, 0)) * eps


def f(denoiser: Denoiser, t: int, x_t):
    """f_θ, DDIM eq. 9 by hand."""
    a, eps = denoiser.process.schedule.alpha[t], denoiser.output(x_t, t)
    return (x_t - (1 - a).sqrt() * eps) / a.sqrt()


def J(denoiser: Denoiser, eta: float) -> float:
    """DDIM eq. 11 from densities: those of q_σ (eq. 6, 7) less those of p_θ (eq. 10)."""
    q, x = denoiser.process, drawn(denoiser.process, eta)
    a, sigma, T = q.schedule.alpha.tolist(), sigmas(q, eta), q.T
    total = expected_log(x[T], math.sqrt(a[T]) * x[0], math.sqrt(1 - a[T])) - expected_log(x[T], 0 * x[T], 1.0)
    for t in range(2, T + 1):
        total += expected_log(x[t - 1], q_mean(a, t, t - 1, sigma[t], x[0], x[t]), sigma[t])
        total -= expected_log(x[t - 1], q_mean(a, t, t - 1, sigma[t], f(denoiser, t, x[t]), x[t]), sigma[t])
    return total - expected_log(x[0], f(denoiser, 1, x[1]), sigma[1])


def at_two_eps(term) -> float:
    """E over ε ~ N(0, 1) of what is quadratic in ε: the mean of its values at ±1."""
    return term(torch.tensor([[1.0], [-1.0]], dtype=torch.float64)).mean().item()


def L(denoiser: Denoiser, eta: float) -> float:
    """L_γ of the objective, with the γ of σ(η) and d = 1."""
    x_0, objective = torch.full((2, 1), X_0, dtype=torch.float64), LGamma(Elbo(eta))
    steps = range(1, denoiser.process.T + 1)
    return sum(at_two_eps(lambda eps, t=t: objective(denoiser, x_0, torch.full((2,), t), eps)) for t in steps)


def generated(denoiser: Denoiser, eta: float) -> dict[int, torch.Tensor]:
    """Rows of x_T..x_0 ~ p_θ, DDIM eq. 1 and 10: x_T has the first noise, x_0 the last."""
    q, basis = denoiser.process, torch.eye(2 + denoiser.process.T, dtype=torch.float64)[1:, :, None]
    a, sigma, x = q.schedule.alpha.tolist(), sigmas(q, eta), {q.T: basis[0]}
    for t in range(q.T, 0, -1):
        x_0 = f(denoiser, t, x[t])
        mean = q_mean(a, t, t - 1, sigma[t], x_0, x[t]) if t > 1 else x_0
        x[t - 1] = mean + sigma[t] * basis[1 + q.T - t]
    return x


def law(x: dict[int, torch.Tensor], ts) -> MultivariateNormal:
    """The joint law of the x_t asked for."""
    rows = torch.cat([x[t] for t in ts], 1)
    spread = rows[1:] - rows[0]
    return MultivariateNormal(rows[0], spread.T @ spread)


@pytest.mark.equation("bound")
@pytest.mark.parametrize("seed", [0, 1])
def test_what_the_bound_lacks_is_the_divergence_of_the_two_paths(q, eta, seed):
    """J_σ + log p_θ(x_0) = KL(q_σ(x_{1:T} | x_0) ‖ p_θ(x_{1:T} | x_0)): never below 0, so -J_σ lies below log p_θ(x_0)."""
    denoiser, ts = affine(q, seed), range(1, q.T + 1)
    p = law(generated(denoiser, eta), range(q.T + 1))
    cov, mean = p.covariance_matrix, p.mean
    gain = cov[1:, 0] / cov[0, 0]  # x_{1:T} given x_0, of a joint Gaussian
    given = MultivariateNormal(mean[1:] + gain * (X_0 - mean[0]), cov[1:, 1:] - gain[:, None] * cov[0, 1:])
    log_p = torch.distributions.Normal(mean[0], cov[0, 0].sqrt()).log_prob(torch.tensor(X_0)).item()
    divergence = kl_divergence(law(drawn(q, eta), ts), given).item()
    assert divergence > 0 and J(denoiser, eta) + log_p == pytest.approx(divergence, rel=1e-7)


@pytest.mark.equation("terms")
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_the_sum_of_its_terms(q, eta, seed):
    denoiser, bound = affine(q, seed), Bound(q, Eta(eta))
    x_0, sigma_1 = torch.full((2, 1), X_0, dtype=torch.float64), sigmas(q, eta)[1]

    def step(eps, t):
        ts = torch.full((2,), t)
        return bound.step(x_0, eps, denoiser(q.q_sample(x_0, ts, eps), ts), ts)

    total = bound.prior(x_0)[0].item() + sum(at_two_eps(lambda eps, t=t: step(eps, t)) for t in range(2, q.T + 1))
    x = drawn(q, eta)
    assert J(denoiser, eta) == pytest.approx(total - expected_log(x[0], f(denoiser, 1, x[1]), sigma_1), rel=1e-9)


@pytest.mark.equation("J", "theorem")
def test_j_is_l_gamma_and_a_constant_that_no_network_moves(q, eta):
    networks, x_0 = [affine(q, seed) for seed in range(4)], torch.full((1, 1), X_0, dtype=torch.float64)
    gaps = [J(denoiser, eta) - L(denoiser, eta) for denoiser in networks]
    assert gaps == pytest.approx([Bound(q, Eta(eta)).constant(x_0).item()] * 4, rel=1e-8, abs=1e-8)
    assert len({round(L(denoiser, eta), 3) for denoiser in networks}) == 4


@pytest.mark.equation("family", "eta")
def test_the_family_and_its_sigma_are_their_formulas(process):
    a = process.schedule.alpha.tolist()
    for t, s, eta in [
        (1000, 999, 1.0),
        (1000, 500, 0.3),
        (700, 20, 0.7),
        (20, 3, 1.0),
        (2, 1, 0.5),
        (3, 3, 1.0),
        (9, 0, 1.0),
    ]:
        sigma = eta * math.sqrt((1 - a[s]) / (1 - a[t])) * math.sqrt(1 - a[t] / a[s])
        assert Eta(eta)(process, t, s) == (pytest.approx(sigma, rel=1e-9), pytest.approx(sigma, rel=1e-9))
        x_0, x_t = randn(4, 3, seed=t), randn(4, 3, seed=s + 1)
        found = process.posterior_mean(x_0, process.eps(x_t, t, x_0), s, sigma)
        torch.testing.assert_close(found, q_mean(a, t, s, sigma, x_0, x_t), rtol=0, atol=1e-10)


@pytest.mark.equation("reverse")
def test_p_is_q_with_the_predicted_image_in_the_place_of_x_0(q, eta):
    denoiser, bound = affine(q, 0), Bound(q, Eta(eta))
    a, sigma = q.schedule.alpha.tolist(), sigmas(q, eta)
    x_0, x_t, x_s = randn(5, 1), randn(5, 1, seed=1), randn(5, 1, seed=2)
    for t in range(1, q.T + 1):
        predicted = f(denoiser, t, x_t)
        mean = q_mean(a, t, t - 1, sigma[t], predicted, x_t) if t > 1 else predicted
        log_p = torch.distributions.Normal(mean, sigma[t]).log_prob(x_s)[:, 0]
        log_q = torch.distributions.Normal(q_mean(a, t, t - 1, sigma[t], x_0, x_t), sigma[t]).log_prob(x_s)[:, 0]
        found = bound.log_ratio(x_0, x_t, x_s, denoiser(x_t, t), t)
        torch.testing.assert_close(found, (log_q if t > 1 else 0) - log_p, rtol=1e-8, atol=1e-8)


@pytest.mark.equation("gamma")
@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_from_the_divergence_to_gamma_line_by_line(process, eta):
    a, sigma = process.schedule.alpha.tolist(), sigmas(process, eta)
    for t in (2, 3, 10, 300, 999, 1000):
        x_0, eps, guess, s = randn(1, 6, seed=t), randn(1, 6, seed=t + 1), randn(1, 6, seed=t + 2), t - 1
        x_t = process.q_sample(x_0, t, eps)
        predicted = (x_t - math.sqrt(1 - a[t]) * guess) / math.sqrt(a[t])
        laws = [torch.distributions.Normal(q_mean(a, t, s, sigma[t], image, x_t), sigma[t]) for image in (x_0, predicted)]
        room = math.sqrt(max(1 - a[s] - sigma[t] ** 2, 0))
        k = math.sqrt(a[s]) - room * math.sqrt(a[t]) / math.sqrt(1 - a[t])
        error, error_eps = (x_0 - predicted).square().sum().item(), (guess - eps).square().sum().item()
        gamma = (math.sqrt(a[s] * (1 - a[t]) / a[t]) - room) ** 2 / (2 * sigma[t] ** 2)
        lines = [
            kl_divergence(*laws).sum().item(),
            (laws[0].mean - laws[1].mean).square().sum().item() / (2 * sigma[t] ** 2),
            k**2 * error / (2 * sigma[t] ** 2),
            k**2 * (1 - a[t]) / a[t] * error_eps / (2 * sigma[t] ** 2),
            gamma * error_eps,
        ]
        assert lines == pytest.approx([lines[0]] * 5, rel=1e-7), t
        assert k > 0 and error == pytest.approx((1 - a[t]) / a[t] * error_eps, rel=1e-9)


@pytest.mark.equation("appendix")
def test_the_weight_of_the_appendix_lacks_a_factor_that_is_no_constant(process):
    """Exact weight over 1/(2 σ² α_t): (1-α_t) k_t². At η = 1 it is α_s β²/(1-α_t), which falls 4,000-fold."""
    a, sigma, t = process.schedule.alpha, torch.tensor(sigmas(process, 1.0)), torch.arange(2, 1001)
    ratio = elbo(process, t) * 2 * sigma[t].square() * a[t]
    beta = 1 - a[t] / a[t - 1]
    torch.testing.assert_close(ratio, a[t - 1] * beta.square() / (1 - a[t]), rtol=1e-6, atol=0)
    assert (ratio > 0).all() and [ratio[0].item(), ratio[-1].item()] == pytest.approx([6.54e-5, 1.65e-8], rel=0.01)


def elbo(q: GaussianProcess, t: torch.Tensor) -> torch.Tensor:
    """γ_t at η = 1 in eps-space."""
    denoiser = Denoiser.of(lambda x, t: x, q.schedule)
    return Elbo(1.0).weight(q, t, denoiser.parameterization)
