"""J_σ = L_γ + C: one C for every network, on draws from the joint q_σ."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import gaussian, randn
from torch import nn

from anysigma.diffusion.bound import Bound
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import stream
from anysigma.diffusion.objective import Elbo, LGamma
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR
from anysigma.studies.base import Model
from anysigma.studies.equivalence import Objective, both, gamma_term, perturbed

SHAPE = (1, 2, 3)
ETAS = [1.0, 0.5, 0.2]


class Tilted(nn.Module):
    """A network that is wrong at every t: the exact one's output, bent."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x_t, t):
        return 0.8 * self.network(x_t, t) + 0.1 * torch.sin(3 * x_t)


def exact(q, parameterization=None):
    return gaussian(q, torch.zeros(SHAPE), 0.09, parameterization)


def wrong(q, parameterization=None):
    denoiser = exact(q, parameterization)
    return Denoiser(Tilted(denoiser.network), q, denoiser.parameterization)


def pixels(n):
    return ((0.3 * randn(n, *SHAPE) + 1) * 255 / 2).round().clamp(0, 255).to(torch.uint8)


def run(denoiser, n=400, **changes):
    study = Objective(**({"n": n, "etas": ETAS, "perturbation": 0.3, "seed": 0, "block": 100} | changes))
    data = SimpleNamespace(held_out=pixels(n), hash="h")
    return study.run(Model(denoiser, SHAPE, {"step": 1}), None, data, None, None)


def figures(result):
    return {(r.params["network"], r.params["eta"], r.metric): (r.value, r.error) for r in result.rows}


@pytest.mark.parametrize("build", [exact, wrong])
@pytest.mark.parametrize(
    "schedule", [Linear(20), Cosine(20), Linear(20, beta_end=0.002)], ids=["linear", "cosine", "signal at T"]
)
def test_the_difference_is_c_for_every_network_and_sigma(schedule, build):
    q = GaussianProcess(schedule)
    result = run(build(q))
    found = figures(result)
    bar = q.schedule.alpha
    variance = (1 - bar[1]) / (1 - bar[2]) * (1 - bar[2] / bar[1])
    prior = 6 / 2 * (bar[-1] * 0.09 - bar[-1] - torch.log1p(-bar[-1]))  # 0.09: what x_0² is on average
    C = (prior + 6 / 2 * math.log(2 * math.pi * variance)).item()
    for network in ("the checkpoint's", "perturbed"):
        for eta in ETAS:
            gap, error = found[network, eta, "J_sigma - L_gamma"]
            assert gap == pytest.approx(C, abs=3.5 * error + 0.01), (network, eta)
            assert found[network, eta, "C"][0] == pytest.approx(C, abs=0.01)
            j, l_gamma = (found[network, eta, metric][0] for metric in ("J_sigma", "L_gamma"))
            assert j - l_gamma == pytest.approx(gap, abs=1e-9)
            # A slip of a factor in either side would be seen: L is many errors large.
            assert l_gamma > 8 * error
    assert all(abs(float(row[-1])) < 3.5 for row in result.tables[0].rows)
    mine = [found["the checkpoint's", eta, "L_gamma"][0] for eta in ETAS]
    assert mine == sorted(mine) and mine[2] > 2 * mine[0]  # γ grows as η falls


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=["x0", "v"])
def test_no_signal_at_T_is_served(parameterization):
    result = run(wrong(GaussianProcess(ZeroTerminalSNR(Linear(20))), parameterization), n=100)
    assert all(math.isfinite(row.value) for row in result.rows)
    assert all(abs(float(row[-1])) < 3.5 for row in result.tables[0].rows)


def test_without_error_j_is_c_draw_by_draw_but_for_l_gamma():
    """At a perfect prediction of one point both densities are the same Gaussian: every ratio is 0 but the ends'."""
    q = GaussianProcess(Linear(12, beta_end=0.002))  # some signal is left at T
    x_0 = randn(5, 3, seed=4)
    bound = Bound(q, Eta(0.5))
    for t in (2, 7, 12):
        eps = randn(5, 3, seed=t)
        x_t = q.q_sample(x_0, t, eps)
        ratio = bound.log_ratio(x_0, x_t, randn(5, 3, seed=1), SimpleNamespace(x_0=x_0, eps=eps), t)
        assert ratio.abs().max() < 1e-6
    x_T = q.q_sample(x_0, 12, randn(5, 3))
    a = q.alpha(12)
    expected = torch.distributions.Normal(a.sqrt() * x_0, (1 - a).sqrt()).log_prob(x_T)
    expected = (expected - torch.distributions.Normal(0.0, 1.0).log_prob(x_T)).sum(1)
    torch.testing.assert_close(bound.log_ratio_T(x_0, x_T), expected)


def test_the_first_step_brings_what_x_t_at_T_says():
    q = GaussianProcess(Linear(12, beta_end=0.002))
    denoiser, x_0, bound = wrong(q), randn(5, *SHAPE), Bound(q, Eta(0.5))
    for t, extra in ((12, 1), (5, 0), (1, 0)):
        x_t, x_s = randn(5, *SHAPE, seed=1), randn(5, *SHAPE, seed=2)
        output = denoiser.output(x_t, t)
        ratio = bound.log_ratio(x_0, x_t, x_s, denoiser(x_t, t), t)
        J, L = both(denoiser, bound, x_0, x_t, x_s, t, output).unbind(1)
        torch.testing.assert_close(J, ratio + extra * bound.log_ratio_T(x_0, x_t))
        torch.testing.assert_close(L, gamma_term(denoiser, 0.5, x_0, x_t, t, output))


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda p: type(p).__name__)
def test_l_gamma_is_the_objectives(short, parameterization):
    denoiser, x_0, eps = wrong(short, parameterization), randn(4, *SHAPE), randn(4, *SHAPE, seed=1)
    for t in (1, 2, 10):
        x_t = short.q_sample(x_0, t, eps)
        found = gamma_term(denoiser, 0.5, x_0, x_t, t, denoiser.output(x_t, t))
        expected = 6 * LGamma(Elbo(0.5))(denoiser, x_0, torch.full((4,), t), eps)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_draws_do_not_depend_on_the_block():
    q = GaussianProcess(Linear(10))
    one, other = figures(run(exact(q), n=10, block=3)), figures(run(exact(q), n=10, block=10))
    assert all(other[key][0] == pytest.approx(value, abs=1e-5) for key, (value, _) in one.items())


def test_the_perturbed_network_is_another_and_the_same_for_a_seed(short):
    denoiser = gaussian(short, torch.ones(SHAPE), 0.09)
    one, again, other = (perturbed(denoiser, 0.3, seed).network.means for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert (denoiser.network.means == 1).all() and 0.1 < (one - 1).std() < 0.6


def test_the_perturbation_is_seeded_noise_in_proportion_to_the_weights(short):
    means = torch.tensor([3.0, 1.0, 1.0]).expand(SHAPE)  # the root of their mean square is √(11/3)
    found = perturbed(gaussian(short, means, 0.09), 0.3, 5).network.means
    noise = torch.randn(found.shape, generator=stream(5, 1))
    torch.testing.assert_close(found.detach().float(), (means + 0.3 * (11 / 3) ** 0.5 * noise).reshape(found.shape))


def test_what_is_shown():
    result = run(exact(GaussianProcess(Linear(10))), n=20)
    assert len(result.tables[0].rows) == 6 and len(result.rows) == 24
    first, second, line = result.plots["objective"].curves
    assert len(first.x) == len(second.x) == 3 and line.y[0] == line.y[1] == pytest.approx(result.rows[3].value)
    gaps = [row.error for row in result.rows if row.metric == "J_sigma - L_gamma"]
    assert [*first.error, *second.error] == [*gaps[::2], *gaps[1::2]]
    assert result.card["n"] == 20 and result.card["step"] == 1


@pytest.mark.parametrize(
    ("changes", "message"), [({"etas": [1.0, 0.0]}, "no density"), ({"etas": []}, "η"), ({"n": 1}, "2 draws")]
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        Objective(**({"n": 3, "etas": ETAS, "perturbation": 0.1, "seed": 0, "block": 4} | changes))
