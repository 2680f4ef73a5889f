"""The bound, term by term, where every term is known; and the study around it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ExactDenoiser, gaussian, randn
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from anysigma.data.images import from_uint8
from anysigma.diffusion.bound import Bound, log_bin, log_normal
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import Elbo, ElboBeta, LGamma
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR
from anysigma.studies.base import Model
from anysigma.studies.likelihood import Likelihood, chosen, strata

V0, D = 0.3, 4  # the data N(0.2, 0.3 I) in four dimensions
RULES = {"1": Eta(1.0), "0.5": Eta(0.5), "0.2": Eta(0.2), "beta": SigmaHat()}


def drawn(q, n, t, seed=0):
    x_0 = 0.2 + V0**0.5 * randn(n, D, seed=seed)
    return x_0, torch.full((n,), t), randn(n, D, seed=seed + 1)


def exact(q, parameterization=None):
    return gaussian(q, torch.full((D,), 0.2, dtype=torch.float64), V0, parameterization)


def kernels(q, rule, t):
    """σ of q_σ and std of p_θ at t ≥ 2 in the papers' letters, by numpy."""
    a, s = q.schedule.alpha.numpy()[[t, t - 1]]
    tilde = (1 - s) / (1 - a) * (1 - a / s)
    sigma = tilde**0.5 * getattr(rule, "eta", 1.0)
    return a, s, sigma, sigma if isinstance(rule, Eta) else (1 - a / s) ** 0.5


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda p: type(p).__name__)
def test_every_step_is_the_kl_that_torch_has(short, name, parameterization):
    """Means formed by hand from the exact network's eps, DDIM eq. 7 and 9; the divergence is torch's."""
    bound, denoiser = Bound(short, RULES[name]), exact(short, parameterization)
    for t in (2, 5, 10):
        x_0, ts, eps = drawn(short, 7, t)
        a, s, sigma, std = kernels(short, RULES[name], t)
        x_t = a**0.5 * x_0 + (1 - a) ** 0.5 * eps
        guess = exact(short)(x_t, ts).eps
        f = (x_t - (1 - a) ** 0.5 * guess) / a**0.5
        room = max(1 - s - sigma**2, 0) ** 0.5
        q = Independent(Normal(s**0.5 * x_0 + room * eps, sigma), 1)
        p = Independent(Normal(s**0.5 * f + room * guess, std), 1)
        found = bound.step(x_0, eps, denoiser(short.q_sample(x_0, ts, eps), ts), ts)
        torch.testing.assert_close(found, kl_divergence(q, p), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.2])
def test_steps_of_an_exact_gaussian_in_closed_form(short, eta):
    """E L_{t-1} = γ_t d α_t v/(α_t v + 1-α_t), 40,000 draws; γ_t of DDIM written out a second time."""
    n = 40_000
    for t in (2, 4, 10):
        x_0, ts, eps = drawn(short, n, t, seed=t)
        a, s, sigma, _ = kernels(short, Eta(eta), t)
        gamma = ((s * (1 - a) / a) ** 0.5 - max(1 - s - sigma**2, 0) ** 0.5) ** 2 / (2 * sigma**2)
        expected = gamma * D * a * V0 / (a * V0 + 1 - a)
        found = Bound(short, Eta(eta)).step(x_0, eps, exact(short)(short.q_sample(x_0, ts, eps), ts), ts)
        assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / n**0.5), t
        assert 4 * found.std().item() / n**0.5 < 0.05 * expected


@pytest.mark.parametrize("schedule", [Linear(10), Cosine(50), ZeroTerminalSNR(Linear(50))], ids=["linear", "cosine", "zero"])
def test_steps_are_the_terms_of_l_gamma(schedule):
    """The bound's terms and the objective's weights are written apart; they are one thing, at α_T = 0 too."""
    q = GaussianProcess(schedule)
    denoiser, extra = exact(q, V()), Bound(q, SigmaHat())
    for t in (2, 7, q.T):
        x_0, ts, eps = drawn(q, 5, t)
        prediction = denoiser(q.q_sample(x_0, ts, eps), ts)
        for eta in (1.0, 0.3):
            found = Bound(q, Eta(eta)).step(x_0, eps, prediction, ts)
            torch.testing.assert_close(found, D * LGamma(Elbo(eta))(denoiser, x_0, ts, eps), rtol=1e-9, atol=1e-12)
        r = (1 - q.alpha(t - 1)) / (1 - q.alpha(t))
        beta = D * LGamma(ElboBeta())(denoiser, x_0, ts, eps) + D / 2 * (r - 1 - r.log())
        torch.testing.assert_close(extra.step(x_0, eps, prediction, ts), beta, rtol=1e-9, atol=1e-12)


def test_the_prior_is_torchs_kl_and_0_without_signal():
    q, x_0 = GaussianProcess(Linear(50, beta_end=0.003)), randn(6, D)
    a = q.alpha(50)
    assert 0.1 < a < 0.5
    expected = kl_divergence(Normal(a.sqrt() * x_0, (1 - a).sqrt()), Normal(0.0, torch.ones((), dtype=torch.float64))).sum(1)
    torch.testing.assert_close(Bound(q, Eta(1.0)).prior(x_0), expected, rtol=1e-10, atol=0)
    assert (Bound(GaussianProcess(ZeroTerminalSNR(Linear(10))), Eta(1.0)).prior(x_0) == 0).all()


def greys():
    return from_uint8(torch.arange(256, dtype=torch.uint8)).double()


@pytest.mark.parametrize("mean", [-1.0, -0.3, 0.001, 0.999, 1.3])
@pytest.mark.parametrize("std", [0.005, 0.05, 1.0])
def test_the_256_bins_sum_to_1_and_hold_what_quadrature_finds(mean, std):
    found = log_bin(greys(), torch.full((256,), mean, dtype=torch.float64), std).exp()
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    for k in (1, 100, 254):  # ∫ over x ± 1/255, by the midpoint rule
        x = 2 * k / 255 - 1 + (np.arange(20_000) + 0.5) / 10_000 / 255 - 1 / 255
        density = np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
        assert found[k].item() == pytest.approx(density.mean() * 2 / 255, rel=1e-6, abs=1e-30), k


def test_a_bin_far_away_keeps_its_cost():
    far = log_bin(torch.tensor([-1.0, 0.9999999, 0.0]), torch.tensor([1.0, -1.0, 1.0]), 0.004)
    assert far.isfinite().all() and far[0] < -100_000
    left, right = log_bin(torch.tensor([-0.2, 0.2]), torch.tensor([1.0, -1.0]), 0.01)  # levels 102 and 153
    assert left.item() == pytest.approx(right.item(), rel=1e-9) and -10_000 < left < -6_000
    edge = log_bin(torch.tensor([1.0]), torch.tensor([3.0]), 0.004)
    assert edge.item() == 0  # an open bin: what lies beyond ±1 is its own


def test_the_decoder_sums_over_pixels_with_the_variance_of_t_2(process):
    x_0 = greys()[torch.tensor([[3, 200], [128, 255]])]
    bar, beta = process.schedule.alpha, 1e-4 + (0.02 - 1e-4) / 999
    std = ((1 - bar[1]) / (1 - bar[2]) * beta).sqrt().item()
    f = x_0 + 0.003
    found = Bound(process, Eta(0.4)).decoder(x_0, SimpleNamespace(x_0=f))
    torch.testing.assert_close(found, -log_bin(x_0, f, std).sum(1), rtol=1e-9, atol=0)


def test_clip_derives_eps_again(short):
    denoiser = Denoiser(Constant(5.0), short, X0())
    x_t, t = randn(3, D), torch.full((3,), 4)
    eps, x_0 = denoiser.clipped(x_t, t)
    assert (x_0 == 1).all()
    torch.testing.assert_close(short.q_sample(x_0, t, eps), x_t)
    assert (denoiser(x_t, t).x_0 == 5).all()


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x_t, t):
        return self.value.expand_as(x_t)


def test_log_normal_is_torchs():
    x, mean = randn(5, D), randn(5, D, seed=1)
    torch.testing.assert_close(log_normal(x, mean, 0.3), Normal(mean, 0.3).log_prob(x).sum(1))


def test_what_has_no_bound_is_refused():
    with pytest.raises(ValueError, match="no density where σ = 0"):
        Bound(GaussianProcess(Linear(10)), Eta(0.0))
    with pytest.raises(ValueError, match=r"schedule\.T=1"):
        Bound(GaussianProcess(Linear(1)), Eta(1.0))


# The study.

DEFAULT = {"n": None, "steps": None, "eta": 1.0, "variance": "sigma", "seed": 0, "block": 64}


def study(**changes):
    return Likelihood(**(DEFAULT | changes))


def pixels(n, shape=(1, 2, 2), spread=0.3, seed=0):
    """Images of independent pixels N(0, spread²) on 256 grey levels."""
    return ((spread * randn(n, *shape, seed=seed) + 1) * 255 / 2).round().clamp(0, 255).to(torch.uint8)


def data_of(images, grey_levels=256, **source):
    return SimpleNamespace(held_out=images, hash="h", source=SimpleNamespace(grey_levels=grey_levels, **source))


def model_of(q, spread=0.3, parameterization=None, shape=(1, 2, 2)):
    return Model(gaussian(q, torch.zeros(shape), spread**2, parameterization), shape, {"step": 1})


def values(result, clip=False):
    return {row.metric: (row.value, row.error) for row in result.rows if row.params.get("clip", clip) is clip}


def perfect(q, v, rule):
    """The bound of an exact denoiser on N(0, v), bits/dim, in closed form; L_0 by the density times the bin's width."""
    bar = q.schedule.alpha.numpy()
    error = bar * v / (bar * v + 1 - bar)  # of eps, a dimension
    total = (bar[-1] * v - bar[-1] - math.log(1 - bar[-1])) / 2
    for t in range(2, q.T + 1):
        a, s, sigma, std = kernels(q, rule, t)
        total += ((s * (1 - a) / a) ** 0.5 - max(1 - s - sigma**2, 0) ** 0.5) ** 2 / (2 * std**2) * error[t]
        total += ((sigma / std) ** 2 - 1 - 2 * math.log(sigma / std)) / 2
    var = kernels(q, Eta(1.0), 2)[2] ** 2
    total += (1 - bar[1]) / bar[1] * error[1] / (2 * var) + math.log(2 * math.pi * var) / 2 - math.log(2 / 255)
    return total / math.log(2)


def test_a_perfect_model_costs_what_it_must_and_more_than_the_entropy():
    """Independent pixels N(0, 0.3²) in bins of 2/255 have ½ log₂(2πe 0.3²) - log₂(2/255) bits.

    Even a perfect denoiser pays more, since p_θ's variance is not that of x_s given x_t; σ² = β_t is nearer to it.
    """
    entropy = math.log2(0.3 * math.sqrt(2 * math.pi * math.e)) - math.log2(2 / 255)
    q, data, found = GaussianProcess(Linear(300)), data_of(pixels(1000)), {}
    for variance, eta in (("beta", 1.0), ("sigma", 1.0), ("sigma", 0.5)):
        one = study(variance=variance, eta=eta)
        terms = values(one.run(model_of(q), None, data, None, None))
        value, error = terms["bits_per_dim"]
        assert terms["L_T"][0] + terms["L_1 to L_{T-1}"][0] + terms["L_0"][0] == pytest.approx(value, abs=1e-12)
        found[variance, eta] = perfect(q, 0.09, one.rule)
        assert value == pytest.approx(found[variance, eta], abs=4 * error) and error < 0.15
    assert entropy + 0.1 < found["beta", 1.0] < found["sigma", 1.0] - 0.3 and found["sigma", 0.5] > found["sigma", 1.0] + 0.3


def test_drawn_terms_have_no_bias_and_every_t_is_exact():
    q, data = GaussianProcess(Cosine(60)), data_of(pixels(2000))
    every = values(study(n=2000).run(model_of(q), None, data, None, None))
    some = values(study(n=2000, steps=9).run(model_of(q), None, data, None, None))
    for metric in ("L_T", "L_0", "of which L_{T-1}"):  # t = 1 and T are asked for every image; L_0 has its own noise
        assert some[metric][0] == pytest.approx(every[metric][0], abs=5 * (every[metric][1] or 0) + 1e-12)
    (a, e), (b, f) = every["L_1 to L_{T-1}"], some["L_1 to L_{T-1}"]
    assert abs(a - b) < 4 * math.hypot(e, f) and f < 0.05 * b


@pytest.mark.parametrize(("T", "K"), [(2, 2), (3, 3), (5, 4), (10, 3), (1000, 100), (1000, 999), (1000, 1000)])
def test_strata_cover_every_t_once(T, K):
    edges = strata(T, K)
    assert len(edges) == K and edges[0] == 2 and edges[-1] == T + 1 and (edges.diff() > 0).all() and edges[-2] == T
    ts, lengths = study(steps=max(3, K)).drawn_t(range(50), T)
    assert (ts[:, 0] == 1).all() and (ts[:, -1] == T).all() and lengths.sum() == T and len(lengths) == K
    assert (ts[:, 1:] >= edges[:-1]).all() and (ts[:, 1:] < edges[1:]).all()


def test_an_image_costs_the_same_beside_any_neighbours():
    q, data = GaussianProcess(Linear(10)), data_of(pixels(30))
    one, other = (study(block=block, steps=5).run(model_of(q), None, data, None, None) for block in (1, 8))
    for metric, (value, _) in values(one).items():
        assert values(other)[metric][0] == pytest.approx(value, abs=1e-6)


def test_rate_ends_at_all_steps_and_distortion_is_on_0_to_255():
    q, images = GaussianProcess(Linear(40)), pixels(400)
    result = study(n=400).run(model_of(q), None, data_of(images), None, None)
    for clip, i in ((True, 0), (False, 1)):
        curve, found = result.plots["rate_distortion"].curves[i], values(result, clip)
        assert curve.x[-1] == pytest.approx(found["L_T"][0])  # at t = T
        assert curve.x[0] == pytest.approx(found["L_T"][0] + found["L_1 to L_{T-1}"][0])  # at t = 1
        terms = result.plots["likelihood_terms"].curves[i]
        assert terms.x == list(range(1, 41)) and sum(terms.y[1:]) == pytest.approx(found["L_1 to L_{T-1}"][0])
    a = q.alpha(20).item()
    expected = 127.5 * math.sqrt(0.09 * (1 - a) / (a * 0.09 + 1 - a))
    assert curve.y[19] == pytest.approx(expected, rel=0.05)


def test_what_is_left_at_T_is_counted_in_bits():
    q, images = GaussianProcess(Linear(20, beta_end=0.002)), pixels(50)
    found, a = values(study().run(model_of(q), None, data_of(images), None, None)), q.alpha(20).item()
    expected = (a * from_uint8(images).square().mean().item() - a - math.log(1 - a)) / 2 / math.log(2)
    assert found["L_T"][0] == pytest.approx(expected, rel=1e-5) and expected > 0.05
    assert found["bits_per_dim"][0] == pytest.approx(sum(found[term][0] for term in ("L_T", "L_1 to L_{T-1}", "L_0")))


def test_clip_reaches_every_term():
    """A network that says x_0 = 5 is held to 1, an image that is white: no error is left, and each step is free."""
    q, white = GaussianProcess(Linear(10)), torch.full((6, 1, 2, 2), 255, dtype=torch.uint8)
    model = Model(Denoiser(Constant(5.0), q, X0()), (1, 2, 2), {})
    result = study().run(model, None, data_of(white), None, None)
    held, free = values(result, True), values(result)
    assert held["L_1 to L_{T-1}"][0] < 1e-6 and free["L_1 to L_{T-1}"][0] > 10
    assert (
        free["L_0"][0] < 1e-6 and held["L_0"][0] > 0.1
    )  # white's bin is open: a mean of 5 lies in it, one of 1 at its edge


class Counted(nn.Module):
    """A network, and how many images it was asked for."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, 0

    def forward(self, x_t, t):
        self.asked += len(x_t)
        return self.network(x_t, t)


def test_both_bounds_come_from_one_call_of_the_network_and_differ_only_where_it_leaves_the_range():
    q = GaussianProcess(Linear(10))
    denoiser = gaussian(q, torch.zeros(1, 2, 2), 0.09)
    counted = Counted(denoiser.network)
    model = Model(Denoiser(counted, q, denoiser.parameterization), (1, 2, 2), {})
    result = study(steps=4).run(model, None, data_of(pixels(30)), None, None)
    assert counted.asked == 30 * 4
    held, free = values(result, True), values(result)
    assert all(held[metric][0] == pytest.approx(value, rel=1e-4) for metric, (value, _) in free.items())  # it stays within
    (headline,) = [row for row in result.rows if row.key]
    assert headline.metric == "bits_per_dim" and headline.params["clip"] is headline.card["clip"] is True
    assert "true in the headline" in result.card["clip"]


@pytest.mark.parametrize("steps", [None, 5])
def test_every_figure_can_be_made_again_from_what_is_kept(steps):
    """Per image and term: nats and t, the strata's lengths, L_T, and nothing else."""
    q, n, d = GaussianProcess(Linear(12)), 9, 4
    network = Denoiser(Constant(0.9), q, Eps())
    result = study(steps=steps).run(Model(network, (1, 2, 2), {}), None, data_of(pixels(n)), None, None)
    kept = result.arrays["likelihood"]
    t, lengths, K = kept["t"], kept["lengths"], steps or 12
    assert t.shape == kept["squared_error"].shape == (n, K) and lengths.sum() == 12 and (t[:, 0] == 1).all()
    for clip, word in ((True, "clipped"), (False, "unclipped")):
        nats = kept[f"nats_{word}"]
        total = (kept["prior"] + (nats * lengths).sum(1)) / d / math.log(2)
        value, error = values(result, clip)["bits_per_dim"]
        assert value == pytest.approx(total.mean()) and error == pytest.approx(total.std(ddof=1) / n**0.5)
    assert values(result)["bits_per_dim"][0] > values(result, True)["bits_per_dim"][0] + 0.1
    bound = Bound(q, Eta(1.0))
    np.testing.assert_allclose(kept["prior"], bound.prior(from_uint8(pixels(n))).numpy())


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=["x0", "v"])
def test_no_signal_at_T_is_served(parameterization):
    q = GaussianProcess(ZeroTerminalSNR(Linear(30)))
    found = values(study().run(model_of(q, parameterization=parameterization), None, data_of(pixels(50)), None, None))
    assert found["L_T"][0] == 0 and all(math.isfinite(value) for value, _ in found.values())


def test_the_card_and_the_lines_say_what_cannot_be_compared():
    q = GaussianProcess(Linear(10))
    result = study(n=5, eta=0.5).run(model_of(q), None, data_of(pixels(20), 17, pad=2), None, None)
    card = {"eta": 0.5, "variance": "sigma", "n": 5, "grey_levels": 17, "padding": 2, "tau": "1..10"}
    assert card.items() <= result.card.items() and result.card["step"] == 1
    assert "17 grey levels" in result.lines[1] and "2 pixels of padding" in result.lines[2]
    assert len(study().run(model_of(q), None, data_of(pixels(3)), None, None).lines) == 1


def test_a_subset_is_a_function_of_the_seed():
    images = pixels(40)
    assert torch.equal(chosen(images, 9, 0), chosen(images, 9, 0)) and torch.equal(chosen(images, 100, 0), images)
    assert not torch.equal(chosen(images, 9, 0), chosen(images, 9, 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "no density at σ = 0"),
        ({"eta": 1.5}, "no density"),
        ({"variance": "large"}, "sigma .* or beta"),
        ({"variance": "beta", "eta": 0.5}, "mean of η = 1"),
        ({"steps": 2}, "at least 3 terms"),
        ({"n": 0}, "at least 1 image"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        study(**changes)
    assert "\n" not in str(error.value)


def test_beta_pays_for_its_variance():
    """On data that are one point a perfect model errs nowhere: what is left is (d/2)(r - 1 - ln r) a step, and L_0."""
    q = GaussianProcess(Linear(30))
    images = torch.full((4, 1, 2, 2), 77, dtype=torch.uint8)
    denoiser = ExactDenoiser(q, from_uint8(images[:1]), 0.0)
    found = values(study(variance="beta").run(Model(denoiser, (1, 2, 2), {}), None, data_of(images), None, None))
    bar = q.schedule.alpha.numpy()
    r = (1 - bar[1:-1]) / (1 - bar[2:])
    assert found["L_1 to L_{T-1}"][0] == pytest.approx((r - 1 - np.log(r)).sum() / 2 / math.log(2), rel=1e-6)
    assert values(study().run(Model(denoiser, (1, 2, 2), {}), None, data_of(images), None, None))["L_1 to L_{T-1}"][0] < 1e-9
