import math
import warnings
from dataclasses import replace

import pytest
import torch
from conftest import CountingNoise, gaussian, mixture, no_noise, point_mass, randn
from torch import nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.base import at_most, pairs
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Explicit, Trailing, Uniform, tau_rule
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear

ETAS = [0.0, 0.5, 1.0]
# (steps, rule): all of them end where hardly any signal is left, so that none warns.
TAUS = {
    "uniform": (50, Uniform()),
    "trailing": (20, Trailing()),
    "trailing that does not divide": (37, Trailing()),
    "explicit": (None, [1000, 970, 500, 20, 3, 1, 0]),
    "one jump": (None, [1000]),
}


@pytest.fixture(params=TAUS)
def tau(request):
    return TAUS[request.param]


def sampler(tau, eta: float = 0.0, clip: bool = False) -> Generalized:
    # Denoisers without error: whatever a step multiplies, it is nothing.
    return Generalized.with_eta(tau[0], eta, tau[1], clip, limit=None)


# --- the exact denoiser itself -------------------------------------------------------------------------------------


@pytest.mark.equation("optimum")
@pytest.mark.parametrize("t", [1, 500, 1000])
def test_the_exact_denoiser_is_the_score(process, t):
    # ε* = -√(1-α_t) ∇ log p_t(x_t), Tweedie; p_t is written out here, the denoiser never forms it.
    means, v = randn(3, 2, 2, seed=1), 0.1
    x_t = randn(5, 2, 2, seed=2).requires_grad_()
    a = process.alpha(t)
    c = a * v + 1 - a
    log_p = (-((x_t[:, None] - a.sqrt() * means) ** 2).flatten(2).sum(2) / (2 * c)).logsumexp(1)
    (score,) = torch.autograd.grad(log_p.sum(), x_t)
    prediction = mixture(process, means, v)(x_t.detach(), t)
    torch.testing.assert_close(prediction.eps, -((1 - a).sqrt() * score), rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [1, 500, 1000])
def test_a_prediction_is_a_pair_tied_by_x_t(process, t):
    x_t = randn(5, 2, 2)
    for denoiser in (point_mass(process, x_t[0]), gaussian(process, x_t[1], 0.3), mixture(process, x_t[2:4], 0.2)):
        eps, x_0 = denoiser(x_t, t)
        torch.testing.assert_close(process.q_sample(x_0, t, eps), x_t, rtol=0, atol=1e-12)
        rows = denoiser(x_t, torch.full((5,), t))
        assert torch.equal(rows.eps, eps) and torch.equal(rows.x_0, x_0)


# --- point mass ----------------------------------------------------------------------------------------------------


@pytest.mark.equation("ddim")
def test_ddim_walks_the_straight_line_to_a_point(process, tau):
    x, x_T = randn(1, 2, 2, seed=1), randn(3, 1, 2, 2)
    steps = list(sampler(tau).trajectory(point_mass(process, x), x_T, no_noise))
    eps = process.eps(x_T, steps[0].t, x)
    for step in steps:
        expected = process.alpha(step.s).sqrt() * x + (1 - process.alpha(step.s)).sqrt() * eps
        torch.testing.assert_close(step.x_s, expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.x_0, x.expand(3, -1, -1, -1), rtol=0, atol=1e-10)
    torch.testing.assert_close(steps[-1].x_s, x.expand(3, -1, -1, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("eta", ETAS)
def test_every_sampler_ends_at_a_point(process, tau, eta):
    x, x_T, generator = randn(1, 2, 2, seed=1), randn(3, 1, 2, 2), torch.Generator().manual_seed(2)
    x_0 = sampler(tau, eta)(
        point_mass(process, x), x_T, lambda: torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    )
    torch.testing.assert_close(x_0, x.expand(3, -1, -1, -1), rtol=0, atol=1e-10)


# --- Gaussian data: the law of every x_s ---------------------------------------------------------------------------


def law(steps: Generalized, denoiser: Denoiser) -> list[tuple[int, float, float]]:
    """(s, mean, variance) of every x_s of a sampler that is affine in x_T ~ N(0, 1) and its noises.

    Row 0 is sent through without noise (the mean), row 1 starts at 1, row 2 + j receives 1 as its j-th noise: what
    they differ from row 0 by are the coefficients, and the variance is the sum of their squares.
    """
    draws = len(steps.pairs(denoiser.process.T))
    basis = torch.eye(2 + draws, dtype=torch.float64)[:, :, None]
    x_T, noises = basis[:, 1], basis[:, 2:].transpose(0, 1)
    noise = CountingNoise((2 + draws, 1), noises)
    found = []
    for step in steps.trajectory(denoiser, x_T, noise):
        mean, rest = step.x_s[0], step.x_s[1:]
        found.append((step.s, mean.item(), (rest - mean).square().sum().item()))
    return found


def recursion(process: GaussianProcess, tau: list[int], eta: float, m: float, v: float) -> list[tuple[int, float, float]]:
    """The same law by hand, in plain floats: x_s = √α_s x_0*(x_t) + √(1-α_s-σ²) ε*(x_t) + σ ε with x_0*, ε* affine."""
    mean, variance, found = 0.0, 1.0, []
    alpha = process.schedule.alpha.tolist()
    for t, s in zip(reversed(tau), [*reversed(tau[:-1]), 0], strict=True):
        a_t, a_s = alpha[t], alpha[s]
        c = a_t * v + 1 - a_t
        sigma2 = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        slope_x_0, slope_eps = math.sqrt(a_t) * v / c, math.sqrt(1 - a_t) / c
        direction = math.sqrt(max(1 - a_s - sigma2, 0))
        residual = mean - math.sqrt(a_t) * m
        mean = math.sqrt(a_s) * (m + slope_x_0 * residual) + direction * slope_eps * residual
        variance = (math.sqrt(a_s) * slope_x_0 + direction * slope_eps) ** 2 * variance + sigma2
        found.append((s, mean, variance))
    return found


@pytest.mark.equation("step")
@pytest.mark.parametrize("eta", ETAS)
def test_gaussian_data_follow_their_recursion(process, tau, eta):
    m, v = 0.7, 0.3
    steps = sampler(tau, eta)
    rising = sorted(t for t, _ in steps.pairs(1000))
    found = law(steps, gaussian(process, torch.full((1,), m, dtype=torch.float64), v))
    expected = recursion(process, rising, eta, m, v)
    assert [s for s, *_ in found] == [s for s, *_ in expected]
    for (s, *moments), (_, *by_hand) in zip(found, expected, strict=True):
        assert moments == pytest.approx(by_hand, abs=1e-10), s


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("m, v", [(0.7, 0.3), (-0.5, 2.0)])
def test_all_steps_reach_the_law_of_gaussian_data(process, eta, m, v):
    _, mean, variance = law(sampler((None, Uniform()), eta), gaussian(process, torch.full((1,), m, dtype=torch.float64), v))[
        -1
    ]
    assert mean == pytest.approx(m, rel=0.02) and variance == pytest.approx(v, rel=0.02)


@pytest.mark.parametrize("eta", ETAS)
def test_a_start_at_the_true_marginal_stays_at_it_for_a_point(process, eta):
    # The family keeps q(x_s | x_0): with x_0 known, x_T ~ q(x_T | x_0) gives x_s ~ q(x_s | x_0) for every s and η.
    m, q = 0.7, process
    tau = [10, 300, 1000]
    alpha = q.schedule.alpha.tolist()
    denoiser = gaussian(q, torch.full((1,), m, dtype=torch.float64), 0.0)
    found = law(sampler((None, tau), eta), denoiser)
    # `law` starts at N(0, 1), the marginal is N(√α_T m, 1-α_T): the difference travels through the slopes alone.
    slope = 1.0
    for (s, mean, variance), (t, _) in zip(found, pairs(tau), strict=True):
        sigma = Eta(eta)(q, t, s)[0]
        slope *= math.sqrt(max(1 - alpha[s] - sigma**2, 0)) / math.sqrt(1 - alpha[t])
        assert mean + slope * math.sqrt(alpha[1000]) * m == pytest.approx(math.sqrt(alpha[s]) * m, abs=1e-10)
        assert variance - slope**2 * alpha[1000] == pytest.approx(1 - alpha[s], abs=1e-10)


# --- noise: when and how much --------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
def test_the_last_step_is_predicted_x_0_and_draws_nothing(process, tau, eta):
    x_T = randn(2, 1, 2, 2)
    noise = CountingNoise(x_T.shape)
    denoiser = gaussian(process, torch.zeros(1, 2, 2), 0.3)
    steps = list(sampler(tau, eta).trajectory(denoiser, x_T, noise))
    assert steps[-1].s == 0 and torch.equal(steps[-1].x_s, steps[-1].x_0)
    assert noise.count == (len(steps) - 1 if eta > 0 else 0)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
@pytest.mark.parametrize("eta", ETAS)
def test_a_step_to_0_never_draws(process, t, eta):
    x_t = randn(2, 1, 2, 2)
    step = sampler((None, [1000]), eta).step(gaussian(process, torch.zeros(1, 2, 2), 0.3), x_t, t, 0, no_noise, ())
    assert torch.equal(step.x_s, step.x_0)


class Restless:
    """A σ rule that leaves room for noise even where the step goes nowhere."""

    def __call__(self, q, t, s):
        return 0.0, 0.5


@pytest.mark.parametrize("sigma", [Eta(0.0), Eta(1.0), Restless()], ids=["ddim", "ddpm", "restless"])
@pytest.mark.parametrize("t", [1, 700, 1000])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_a_repeat_is_the_identity_under_every_rule(process, sigma, t, clip):
    # In float32 a walk to x_0 and back loses bits: only a step that leaves x_t alone returns all of them.
    x_t = 3 * randn(100, 1, 2, 2, dtype=torch.float32)
    denoiser = gaussian(process, torch.zeros(1, 2, 2), 0.3)
    step = next(Generalized(steps=None, sigma=sigma, tau=[t, t], clip=clip, limit=None).trajectory(denoiser, x_t, no_noise))
    assert (step.t, step.s) == (t, t)
    assert torch.equal(step.x_s, x_t)


@pytest.mark.parametrize("eta", ETAS)
def test_a_repeat_in_tau_changes_nothing(process, eta):
    x_T, denoiser = randn(2, 1), gaussian(process, torch.zeros(1), 0.3)
    noises = randn(4, 2, 1, seed=5)
    once, twice = (
        sampler((None, tau), eta)(denoiser, x_T, CountingNoise(x_T.shape, noises))
        for tau in ([10, 300, 1000], [10, 300, 300, 1000])
    )
    assert torch.equal(once, twice)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_trajectory_keeps_the_dtype_of_its_state(process, dtype):
    x_T = randn(2, 1, 2, 2, dtype=dtype)
    denoiser = gaussian(process, torch.zeros(1, 2, 2), 0.3)
    for step in sampler((5, Trailing()), 1.0, True).trajectory(denoiser, x_T, lambda: torch.ones_like(x_T)):
        assert step.x_s.dtype == step.x_0.dtype == dtype


# --- clipping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", ETAS)
def test_a_clipped_prediction_carries_the_eps_that_fits_it(process, tau, eta):
    # A denoiser that insists on x_0 = 5 is, clipped, one that insists on 1: had eps been kept, the paths would part.
    x_T, noises = randn(2, 1, 2, 2), randn(60, 2, 1, 2, 2, seed=1)
    one, five = torch.ones(1, 2, 2), torch.full((1, 2, 2), 5.0)
    clipped, honest = (
        list(sampler(tau, eta, clip).trajectory(point_mass(process, x), x_T, CountingNoise(x_T.shape, noises)))
        for x, clip in ((five, True), (one, False))
    )
    for a, b in zip(clipped, honest, strict=True):
        assert (a.x_0 == 1).all()
        torch.testing.assert_close(a.x_s, b.x_s, rtol=0, atol=1e-9)


@pytest.mark.parametrize("t", [1, 500, 1000])
def test_the_rederived_eps_satisfies_x_t(process, t):
    x_t, x = randn(3, 1, 2, 2), torch.full((1, 2, 2), 5.0)
    step = sampler((None, [1000]), 0.0, True).step(point_mass(process, x), x_t, t, t - 1, no_noise, ())
    # x_s = √α_s x_0 + √(1-α_s) eps gives the eps that was used; at s = 0 there is none left to read.
    if t > 1:
        eps = process.eps(step.x_s, t - 1, step.x_0)
        torch.testing.assert_close(process.q_sample(torch.ones_like(x_t), t, eps), x_t, rtol=0, atol=1e-10)
    assert (step.x_0 == 1).all()


def test_clipping_leaves_predictions_inside_the_range_alone(process, tau):
    x, x_T = randn(1, 2, 2).clamp(-0.9, 0.9), randn(2, 1, 2, 2, seed=1)
    a, b = (sampler(tau, 0.0, clip)(point_mass(process, x), x_T, no_noise) for clip in (True, False))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# --- τ -------------------------------------------------------------------------------------------------------------

SAMPLED = [(S, T) for T in (10, 37) for S in range(1, T + 1)] + [(S, 1000) for S in (1, 2, 3, 7, 10, 333, 50, 999, 1000)]


@pytest.mark.parametrize("S, T", SAMPLED)
def test_uniform_is_its_formula(S, T):
    assert Uniform()(S, T) == [1 + math.floor(i * T / S + 1e-9) for i in range(S)]


@pytest.mark.parametrize("S, T", SAMPLED)
def test_trailing_is_its_formula(S, T):
    assert Trailing()(S, T) == [math.floor((i + 1) * T / S + 0.5 + 1e-9) for i in range(S)]
    assert Trailing()(S, T)[-1] == T


@pytest.mark.parametrize("rule", [Uniform(), Trailing()], ids=["uniform", "trailing"])
@pytest.mark.parametrize("S, T", SAMPLED)
def test_a_rule_gives_S_rising_steps_within_1_to_T(rule, S, T):
    tau = rule(S, T)
    assert len(tau) == S and tau == sorted(set(tau)) and tau[0] >= 1 and tau[-1] <= T


@pytest.mark.parametrize("rule", [Uniform(), Trailing()], ids=["uniform", "trailing"])
@pytest.mark.parametrize("steps", [None, 37])
def test_all_steps_are_1_to_T_under_every_rule(rule, steps):
    found = sampler((steps, rule)).pairs(37)
    assert found == [(t, t - 1) for t in range(37, 0, -1)]
    assert rule(37, 37) == list(range(1, 38))


def test_all_steps_are_1_to_T_even_under_a_rule_that_repeats():
    class Squares:
        def __call__(self, S, T):
            return [1 + i * i * (T - 1) // (S * S) for i in range(S)]

    assert Squares()(37, 37) != list(range(1, 38))
    assert sampler((None, Squares())).pairs(37) == [(t, t - 1) for t in range(37, 0, -1)]
    assert sampler((9, Squares())).pairs(37) == pairs(Squares()(9, 37))


def test_pairs_are_built_from_one_list():
    assert pairs([1, 4, 9]) == [(9, 4), (4, 1), (1, 0)]
    assert pairs([7]) == [(7, 0)]


@pytest.mark.parametrize("values", [[10, 8, 6, 4, 2, 0], [0, 2, 4, 6, 8, 10], [10, 8, 6, 4, 2], (2, 4, 6, 8, 10)], ids=str)
def test_an_explicit_list_may_rise_or_fall(values):
    for steps in (None, 3, 50):
        assert sampler((steps, values)).pairs(10) == [(10, 8), (8, 6), (6, 4), (4, 2), (2, 0)]


@pytest.mark.parametrize("eta", ETAS)
def test_one_jump_is_predicted_x_0(process, eta):
    x_T, denoiser = randn(3, 1, 2, 2), gaussian(process, torch.zeros(1, 2, 2), 0.3)
    jump = sampler((None, [1000]), eta)
    assert jump.pairs(1000) == [(1000, 0)]
    assert torch.equal(jump(denoiser, x_T, no_noise), denoiser(x_T, 1000).x_0)


def test_a_rule_is_taken_as_it_is_and_a_list_becomes_one():
    rule = Trailing()
    assert tau_rule(rule) is rule and tau_rule([3, 1]) == Explicit((3, 1))


@pytest.mark.parametrize("values", [[1, 3, 2], [3, 1, 2], [0, 5, 0], []], ids=str)
def test_a_list_that_is_not_monotone_is_refused(values):
    with pytest.raises(ValueError, match=r"tau=.*rising or a falling"):
        sampler((None, values))


@pytest.mark.parametrize("values", [[1, 11], [11], [-1, 5], [0], [0, 0, 5], [-3]], ids=str)
def test_a_list_that_leaves_1_to_T_is_refused(values):
    with pytest.raises(ValueError, match=r"tau=.*1\.\.10"):
        sampler((None, values)).pairs(10)


@pytest.mark.parametrize("S", [0, -3])
def test_fewer_than_one_step_is_refused(S):
    with pytest.raises(ValueError, match=f"steps={S}"):
        Generalized.with_eta(S, 0.0, Uniform(), False)


@pytest.mark.parametrize("rule", [Uniform(), Trailing()], ids=["uniform", "trailing"])
def test_more_steps_than_T_are_refused(rule, short):
    with pytest.raises(ValueError, match=r"steps=11.*T=10"):
        sampler((11, rule)).pairs(10)
    with pytest.raises(ValueError, match=r"steps=11.*T=10"):
        sampler((11, rule))(point_mass(short, torch.zeros(1)), randn(2, 1), no_noise)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match="eta="):
        Generalized.with_eta(10, eta, Uniform(), False)


@pytest.mark.parametrize("steps, T, expected", [(50, 10, 10), (5, 10, 5), (10, 10, 10), (None, 10, 10)])
@pytest.mark.parametrize("rule", [Uniform(), Trailing()], ids=["uniform", "trailing"])
def test_at_most_takes_no_more_steps_than_there_are(steps, T, expected, rule):
    assert at_most(sampler((steps, rule)), T).pairs(T) == sampler((expected, rule)).pairs(T)


def test_at_most_keeps_all_else():
    chosen = Generalized(steps=50, sigma=SigmaHat(), tau=[3, 2, 1], clip=False)
    assert at_most(chosen, 10) == replace(chosen, steps=10) and at_most(chosen, 10).pairs(10) == chosen.pairs(10)
    other = object()
    assert at_most(other, 10) is other  # what has no S cannot have too many


# --- what the network is asked, and where a start is no start ------------------------------------------------------


class Spy(nn.Module):
    """Remembers every t it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, t):
        assert t.dtype == torch.long and t.shape == (len(x_t),) and len(set(t.tolist())) == 1
        self.asked.append(int(t[0]))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("steps, rule", [(10, Uniform()), (7, Trailing()), (None, [1000, 500, 2]), (None, [1, 999, 999])])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_network_is_asked_at_the_original_t(process, steps, rule, eta):
    spy = Spy()
    chosen = sampler((steps, rule), eta, True)
    list(chosen.trajectory(Denoiser(spy, process, Eps()), randn(2, 1), lambda: randn(2, 1)))
    expected = tau_rule(rule)(steps, 1000)
    assert spy.asked == expected[::-1]


def start(schedule, steps, tau) -> None:
    q = GaussianProcess(schedule)
    sampler((steps, tau))(point_mass(q, torch.zeros(1)), randn(1, 1), no_noise)


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("steps, tau", [(None, [500]), (1, Uniform())], ids=["500", "uniform 1"])
def test_a_start_where_signal_is_left_warns(schedule, steps, tau):
    t = 500 if steps is None else 1
    with pytest.warns(UserWarning, match=f"t={t} where α="):
        start(schedule, steps, tau)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Linear(10)], ids=["linear", "cosine", "short"])
@pytest.mark.parametrize("steps, tau", [(50, Uniform()), (None, Uniform()), (5, Trailing())])
def test_an_ordinary_start_does_not_warn(schedule, steps, tau):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(schedule, steps and min(steps, schedule.T), tau)


def test_a_sampler_holds_no_state(process):
    x_T, denoiser = randn(2, 1), gaussian(process, torch.zeros(1), 0.3)
    chosen = sampler((10, Trailing()), 1.0)
    first, again = (chosen(denoiser, x_T, CountingNoise(x_T.shape, randn(10, 2, 1))) for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(AttributeError):
        chosen.steps = 3
