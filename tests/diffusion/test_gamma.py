"""γ rules in every parameterisation, and the rules that draw t."""

import numpy as np
import pytest
import torch
from conftest import randn
from torch import nn

from anysigma.diffusion.bound import Bound
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import P2, VMSE, Elbo, ElboBeta, LGamma, MinSNR, Simple, Stratified, Uniform
from anysigma.diffusion.parameterizations import X0, Eps, Prediction, V
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR


def named(gamma):
    """Its text, without the address that differs between processes."""
    return str(gamma).split(" object at ")[0]


PARAMETERIZATIONS = {"eps": Eps(), "x0": X0(), "v": V()}


def table(q):
    """α_t, α_{t-1}, β_t, β̃_t for t = 1..T in DDPM's letters, by numpy; β̃_1 is replaced by β̃_2."""
    bar = q.schedule.alpha.numpy()
    now, before = bar[1:], bar[:-1]
    beta = 1 - now / before
    tilde = (1 - before) / (1 - now) * beta
    return now, before, beta, np.concatenate([tilde[1:2], tilde[1:]])


def elbo_in_numpy(q, eta):
    now, before, _, tilde = table(q)
    inside = eta**2 * np.concatenate([[0], tilde[1:]])
    divisor = np.concatenate([tilde[:1], eta**2 * tilde[1:]])
    return (np.sqrt(before * (1 - now) / now) - np.sqrt(np.maximum(1 - before - inside, 0))) ** 2 / (2 * divisor)


def elbo_beta_in_numpy(q):
    now, _, beta, tilde = table(q)
    variance = np.concatenate([tilde[:1], beta[1:]])  # of p_θ: the official code's for "fixedlarge"
    return beta**2 / (2 * variance * (1 - beta) * (1 - now))


# Rule and γ_t for t = 1..T, in eps-space, written a second time.
RULES = {
    "simple": (Simple(), lambda q: np.ones(q.T)),
    "v_mse": (VMSE(), lambda q: 1 / table(q)[0]),
    "min_snr": (MinSNR(), lambda q: np.minimum(1, 5 / (table(q)[0] / (1 - table(q)[0])))),
    "min_snr 1": (MinSNR(1.0), lambda q: np.minimum(1, 1 / table(q)[0] - 1)),
    "p2": (P2(), lambda q: 1 - table(q)[0]),
    "p2 of two": (P2(0.5, 2.0), lambda q: (0.5 + table(q)[0] / (1 - table(q)[0])) ** -2.0),
    "elbo": (Elbo(), lambda q: elbo_in_numpy(q, 1.0)),
    "elbo 0.2": (Elbo(0.2), lambda q: elbo_in_numpy(q, 0.2)),
    "elbo_beta": (ElboBeta(), elbo_beta_in_numpy),
}


@pytest.fixture(params=RULES)
def rule(request):
    return RULES[request.param]


@pytest.fixture(scope="module")
def ends_at_zero() -> GaussianProcess:
    return GaussianProcess(ZeroTerminalSNR(Linear()))


def guess(x_t, t):
    """An eps far from every true one, so that no error is small and each is known to all its digits."""
    return 8 + torch.sin(3 * x_t) + t[:, None] / 1000


class SameMind(nn.Module):
    """One guess of eps, said in the words of any parameterisation."""

    def __init__(self, process, parameterization):
        super().__init__()
        self.process, self.parameterization = process, parameterization

    def forward(self, x_t, t):
        eps = guess(x_t, t)
        return self.parameterization.target(self.process, self.process.x_0(x_t, t, eps), t, eps)


@pytest.mark.equation("objective")
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(10)], ids=["linear", "cosine", "short"])
def test_every_parameterization_has_the_same_loss(schedule, rule):
    q, (gamma, by_hand) = GaussianProcess(schedule), rule
    t = torch.arange(1, q.T + 1)
    x_0, eps = randn(q.T, 4), randn(q.T, 4, seed=1)
    expected = torch.from_numpy(by_hand(q)) * (guess(q.q_sample(x_0, t, eps), t) - eps).square().mean(1)
    losses = {
        name: LGamma(gamma)(Denoiser(SameMind(q, parameterization), q, parameterization), x_0, t, eps)
        for name, parameterization in PARAMETERIZATIONS.items()
    }
    for loss in losses.values():
        torch.testing.assert_close(loss, losses["eps"], rtol=1e-12, atol=0)
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)  # its β = 1 - α_t/α_s costs digits


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS.values(), ids=PARAMETERIZATIONS)
@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(10)], ids=["linear", "cosine", "short"])
def test_the_weight_is_gamma_times_the_squared_scale(schedule, parameterization, rule):
    q, (gamma, by_hand) = GaussianProcess(schedule), rule
    t = torch.arange(1, q.T + 1)
    expected = torch.from_numpy(by_hand(q)) * parameterization.eps_scale(q, t).square()
    weight = gamma.weight(q, t, parameterization)
    assert weight.dtype == torch.float64 and weight.isfinite().all() and (weight > 0).all()
    torch.testing.assert_close(weight, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("eta", [0.01, 0.3, 0.7, 1.0])
def test_elbo_is_the_kl_between_the_two_gaussians_of_a_step(process, eta):
    g = np.random.default_rng(0)
    for t in [2, 3, 1000, *map(int, g.integers(2, 1001, 40))]:
        x_0, eps, guess = randn(1, 6, seed=t), randn(1, 6, seed=t + 1), randn(1, 6, seed=t + 2)
        x_t = process.q_sample(x_0, t, eps)
        sigma = Eta(eta)(process, t, t - 1)[0]
        q_mean = process.posterior_mean(x_0, eps, t - 1, sigma)
        p_mean = process.posterior_mean(process.x_0(x_t, t, guess), guess, t - 1, sigma)
        q_law, p_law = (torch.distributions.Normal(mean, sigma) for mean in (q_mean, p_mean))
        kl = torch.distributions.kl_divergence(q_law, p_law).sum()
        gamma = Elbo(eta).weight(process, torch.tensor([t]), Eps())
        assert (gamma * (guess - eps).square().sum()).item() == pytest.approx(kl.item(), rel=1e-8), t


@pytest.mark.parametrize("rule", [Elbo(0.3), Elbo(1.0), ElboBeta()])
def test_the_first_step_is_a_likelihood_of_the_variance_of_the_second(process, rule):
    x_0, eps, guess = randn(1, 6), randn(1, 6, seed=1), randn(1, 6, seed=2)
    f = process.x_0(process.q_sample(x_0, 1, eps), 1, guess)
    tilde = Eta(1.0)(process, 2, 1)[0] ** 2
    gamma = rule.weight(process, torch.tensor([1]), Eps())
    expected = ((x_0 - f).square().sum() / (2 * tilde)).item()
    assert (gamma * (guess - eps).square().sum()).item() == pytest.approx(expected, rel=1e-10)


def test_elbo_at_eta_1_is_the_weight_of_ddpm(process):
    now, _, beta, tilde = table(process)
    found = Elbo(1.0).weight(process, torch.arange(2, 1001), Eps()).numpy()
    np.testing.assert_allclose(found, (beta**2 / (2 * tilde * (1 - beta) * (1 - now)))[1:], rtol=1e-9)


def test_elbo_beta_is_elbo_times_the_ratio_of_the_variances(process):
    t = torch.arange(2, 1001)
    _, _, beta, tilde = table(process)
    ratio = ElboBeta().weight(process, t, V()) / Elbo(1.0).weight(process, t, V())
    np.testing.assert_allclose(ratio.numpy(), (tilde / beta)[1:], rtol=1e-9)


CHAINS = [(Linear(10), "eps"), (Cosine(50), "x0"), (Cosine(50), "eps"), (ZeroTerminalSNR(Linear(30)), "v")]


@pytest.mark.parametrize(("schedule", "name"), CHAINS, ids=["linear", "cosine x0", "cosine", "zero"])
@pytest.mark.parametrize(("gamma", "rule"), [(Elbo(), Eta(1.0)), (Elbo(0.3), Eta(0.3)), (ElboBeta(), SigmaHat())], ids=named)
def test_every_term_of_the_bound_that_a_network_moves_is_the_objectives(schedule, name, gamma, rule):
    """t = 1..T: KL(q_σ ‖ p_θ), and -log p_θ(x_0 | x_1), less what each is where the network errs nowhere."""
    q = GaussianProcess(schedule)
    bound, denoiser = Bound(q, rule), Denoiser(Wrong(), q, PARAMETERIZATIONS[name])
    for t in range(1, q.T + 1):
        x_0, eps, ts = randn(3, 6, seed=t), randn(3, 6, seed=t + 1), torch.full((3,), t)
        x_t = q.q_sample(x_0, ts, eps)

        def term(prediction, t=t, ts=ts, x_0=x_0, eps=eps, x_t=x_t):
            return bound.log_ratio(x_0, x_t, x_0, prediction, 1) if t == 1 else bound.step(x_0, eps, prediction, ts)

        found = term(denoiser(x_t, ts)) - term(Prediction(eps, x_0))
        torch.testing.assert_close(found, 6 * LGamma(gamma)(denoiser, x_0, ts, eps), rtol=1e-7, atol=1e-9)


class Wrong(nn.Module):
    """An output that is nowhere near any target."""

    def forward(self, x_t, t):
        return 3 + torch.sin(3 * x_t)


@pytest.mark.parametrize("eta", [0.0, -0.1, 1.1, float("nan")])
def test_elbo_refuses_an_eta_without_a_density(eta):
    with pytest.raises(ValueError, match="eta="):
        Elbo(eta)


@pytest.mark.parametrize("gamma", [Elbo(), ElboBeta()], ids=named)
def test_the_bound_refuses_a_process_of_one_step(gamma):
    with pytest.raises(ValueError, match="T=1"):
        gamma.weight(GaussianProcess(Linear(1)), torch.tensor([1]), Eps())


@pytest.mark.parametrize("build", [lambda: MinSNR(0.0), lambda: P2(0.0, 1.0), lambda: P2(1.0, -1.0)])
def test_numbers_without_meaning_are_refused(build):
    with pytest.raises(ValueError, match="gamma"):
        build()


# --- where no signal is left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x0", "v"])
def test_every_weight_is_finite_where_no_signal_is_left(ends_at_zero, rule, name):
    weight = rule[0].weight(ends_at_zero, torch.arange(1, 1001), PARAMETERIZATIONS[name])
    assert weight.isfinite().all() and (weight[:-1] > 0).all() and weight[-1] >= 0


def gradient(q, gamma, parameterization):
    """Of the loss at t = T with respect to the network's output."""
    output = randn(3, 4, seed=3).requires_grad_()

    class Says(nn.Module):
        def forward(self, x_t, t):
            return output

    t = torch.full((3,), q.T)
    LGamma(gamma)(Denoiser(Says(), q, parameterization), randn(3, 4), t, randn(3, 4, seed=1)).sum().backward()
    return output.grad


@pytest.mark.parametrize("gamma", [VMSE(), Elbo(), Elbo(0.3), ElboBeta()], ids=named)
@pytest.mark.parametrize("name", ["x0", "v"])
def test_a_gamma_that_grows_as_the_signal_falls_trains_the_last_step(ends_at_zero, gamma, name):
    found = gradient(ends_at_zero, gamma, PARAMETERIZATIONS[name])
    assert found.isfinite().all() and (found != 0).all()


@pytest.mark.parametrize("gamma", [Simple(), MinSNR(), P2()], ids=named)
@pytest.mark.parametrize("name", ["x0", "v"])
def test_a_bounded_gamma_cannot_train_the_last_step(ends_at_zero, gamma, name):
    # eps is x_T itself there, whatever v or x_0 is said: its error is 0, and min(SNR, 5)/(SNR + 1) is 0 at SNR = 0.
    assert (gradient(ends_at_zero, gamma, PARAMETERIZATIONS[name]) == 0).all()


def test_v_mse_weighs_every_v_alike_and_min_snr_is_its_formula(ends_at_zero):
    t = torch.arange(1, 1001)
    assert torch.equal(VMSE().weight(ends_at_zero, t, V()), torch.ones(1000, dtype=torch.float64))
    a = ends_at_zero.alpha(t)
    snr = a / (1 - a)
    torch.testing.assert_close(MinSNR().weight(ends_at_zero, t, V()), snr.clamp(max=5) / (snr + 1), rtol=1e-12, atol=0)
    torch.testing.assert_close(MinSNR().weight(ends_at_zero, t, X0()), snr.clamp(max=5), rtol=1e-12, atol=0)


# --- t -------------------------------------------------------------------------------------------------------------


def uniforms(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_uniform_is_the_default_and_looks_at_each_u_alone():
    u = uniforms(64)
    t, weight = LGamma(Simple()).draw_t(u, 1000)
    assert t.tolist() == [1 + int(one * 1000) for one in u.tolist()] and torch.equal(weight, torch.ones(64))
    assert torch.equal(t[10:20], Uniform()(u[10:20], 1000)[0]) and LGamma(Simple()).draw == Uniform()


@pytest.mark.parametrize("B, T", [(1, 1), (1, 10), (7, 10), (10, 10), (40, 10), (128, 1000), (37, 100)])
def test_a_stratified_batch_has_one_t_in_each_part(B, T):
    for seed in range(20):
        t, weight = LGamma(Simple(), Stratified()).draw_t(uniforms(B, seed=seed), T)
        assert t.dtype == torch.long and t.shape == (B,) and torch.equal(weight, torch.ones(B))
        for i, one in enumerate(sorted(t.tolist())):
            assert 1 + i * T // B <= one <= min(1 + (i + 1) * T // B, T)


def test_a_stratified_batch_of_T_is_a_permutation_of_1_to_T():
    t = Stratified()(uniforms(1000), 1000)[0]
    assert torch.equal(t.sort().values, torch.arange(1, 1001)) and not torch.equal(t, torch.arange(1, 1001))
    assert (torch.bincount(Stratified()(uniforms(40), 10)[0])[1:] == 4).all()


def test_the_largest_u_of_a_batch_gets_the_largest_t():
    u = uniforms(50)
    t = Stratified()(u, 10_000)[0]
    assert torch.equal(t.argsort(), u.argsort())


def test_every_place_of_a_stratified_batch_is_uniform():
    n, B, T = 6000, 7, 10
    draws = torch.stack([Stratified()(u, T)[0] for u in uniforms(n, B)])
    for place in range(B):
        counts = torch.bincount(draws[:, place], minlength=T + 1)[1:]
        assert (counts - n / T).abs().max() < 5 * (n / T * (1 - 1 / T)) ** 0.5
    # All places together scatter less than independent ones would.
    counts = torch.bincount(draws.flatten(), minlength=T + 1)[1:]
    assert (counts - n * B / T).abs().max() < 5 * (n * B / T * (1 - 1 / T)) ** 0.5


@pytest.mark.parametrize("B", [2, 5])
def test_within_its_part_every_t_is_uniform_and_independent_of_the_others_and_of_the_order(B):
    """Malmquist's ratios, against what they must be: n batches of B parts of 100 steps, each t by its place in its part."""
    n, steps = 20_000, 100
    u = uniforms(n, B, seed=1)
    t = torch.stack([Stratified()(one, B * steps)[0] for one in u]) - 1
    part, within = t // steps, (t % steps + 0.5) / steps
    assert torch.equal(part, u.argsort(1).argsort(1))  # the part is the rank
    within_by_part = torch.empty_like(within).scatter(1, part, within)
    for x in (*within.T, *within_by_part.T):
        assert (torch.histc(x, 10, 0, 1) - n / 10).abs().max() < 5 * (n / 10 * 0.9) ** 0.5
    together = torch.cat([within_by_part, part[:, :-1].double()], 1)
    for y in (together, (together - together.mean(0) - 0.1).square()):
        correlation = torch.corrcoef(y.T)[:B].fill_diagonal_(0)  # of each place with all others and with the order
        assert correlation.abs().max() < 4.5 / n**0.5


def test_a_stratified_mean_scatters_less_than_a_uniform_one():
    means = {
        rule: torch.stack([rule(u, 1000)[0].double().square().mean() for u in uniforms(300, 32)])
        for rule in (Uniform(), Stratified())
    }
    truth = torch.arange(1, 1001).double().square().mean()
    uniform, stratified = means.values()
    assert stratified.std() < uniform.std() / 10
    assert (stratified.mean() - truth).abs() < 5 * stratified.std() / 300**0.5


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_u_carries_t_out_of_1_to_T(u, dtype):
    """All alike, which chance does not give: also 0/0, and ratios of 1."""
    same = torch.full((128,), u, dtype=torch.float64).to(dtype)
    for rule in (Uniform(), Stratified()):
        t = rule(same, 1000)[0]
        assert t.min() >= 1 and t.max() <= 1000


@pytest.mark.parametrize("rule", [Uniform(), Stratified()])
def test_t_is_a_function_of_u(rule):
    one, other = uniforms(100), uniforms(100, seed=1)
    t, again, another = (rule(u, 1000)[0] for u in (one, one.clone(), other))
    assert torch.equal(t, again) and not torch.equal(t, another)
