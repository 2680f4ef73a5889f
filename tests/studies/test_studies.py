"""Studies of one checkpoint against what exact denoisers must give."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import gaussian, mixture, randn

from anysigma.data.digits import Digits
from anysigma.data.images import from_uint8, to_uint8
from anysigma.data.rings import Rings
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.objective import Elbo
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.amplification import Amplifies
from anysigma.diffusion.samplers.base import AlongTau, Step
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Trailing, Uniform
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR
from anysigma.studies.base import CannotServe, Model
from anysigma.studies.consistency import Consistency
from anysigma.studies.equivalence import Objective
from anysigma.studies.generated import path, sampled
from anysigma.studies.interpolation import Interpolation, slerp
from anysigma.studies.likelihood import Likelihood
from anysigma.studies.lineup import each_S
from anysigma.studies.one_step import OneStep, amplification, errors_at_T, mean_and_spread, root, seen
from anysigma.studies.plane import Plane, exact_ones, to_point, to_ring
from anysigma.studies.reconstruction import Reconstruction, squared_error, there_and_back
from anysigma.studies.schedule import Schedules
from anysigma.studies.trajectory import BUDGET, Trajectory, states

SHAPE = (1, 4, 4)
SAMPLER = Generalized.with_eta(20, 0.0, Trailing(), True)
BOTH = {"ddim": replace(SAMPLER, steps=7), "ddpm": Generalized.with_eta(12, 1.0, Trailing(), True)}
SOLVER = DPMSolverPP(steps=20, tau=Trailing(), clip=True)


def model_of(denoiser, shape=SHAPE):
    return Model(denoiser, shape, {"precision": "32-true"})


def data_of(held_out, train=None):
    source = SimpleNamespace(grey_levels=256)
    train = held_out if train is None else train
    return SimpleNamespace(held_out=held_out, train=train, hash="h", source=source, shape=tuple(held_out.shape[1:]))


def images(n, seed=0):
    return to_uint8(0.4 * randn(n, *SHAPE, seed=seed))


def value(result, metric, **params):
    [row] = [r for r in result.rows if r.metric == metric and params.items() <= r.params.items()]
    return row.value


@pytest.fixture
def blobs(process):
    """Four images, apart from one another, with a little noise on each."""
    return model_of(mixture(process, 0.6 * randn(4, *SHAPE, seed=3).sign(), 0.01))


# Reconstruction


def by_hand(alpha, tau, x, m, v):
    """decode(encode(x)) in floats for data N(m, v), η = 0: DDIM eq. 13 in x/√α and √((1-α)/α), up and down."""

    def eps(a, x):
        return math.sqrt(1 - a) * (x - math.sqrt(a) * m) / (a * v + 1 - a)

    def move(x, s, t, at):
        grow = math.sqrt((1 - alpha[t]) / alpha[t]) - math.sqrt((1 - alpha[s]) / alpha[s])
        return math.sqrt(alpha[t]) * (x / math.sqrt(alpha[s]) + grow * eps(alpha[at], x))

    for s, t in zip([0, *tau[:-1]], tau, strict=True):
        x = move(x, s, t, s or t)
    for t, s in zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True):
        x = move(x, t, s, t)
    return x


@pytest.mark.parametrize(("S", "expected"), [(10, 1.21e-2), (50, 7.14e-4), (100, 1.89e-4), (1000, 1.99e-6)])
def test_reconstruction_of_gaussian_data_is_the_affine_closed_form(process, S, expected):
    m, v = 0.5, 0.25
    ddim = Generalized.with_eta(S, 0.0, Uniform(), False)
    tau = [t for t, _ in reversed(ddim.pairs(1000))]
    model = model_of(gaussian(process, torch.full((1,), m, dtype=torch.float64), v), (1,))
    x_0 = m + v**0.5 * randn(5, 1)
    back = there_and_back(model, ddim, x_0)
    alpha = process.schedule.alpha.tolist()
    hand = torch.tensor([[by_hand(alpha, tau, x, m, v)] for x in x_0.flatten().tolist()], dtype=torch.float64)
    assert (back - hand).abs().max() < 1e-10
    assert (squared_error(back, x_0) - squared_error(hand, x_0)).abs().max() < 1e-10
    # x → A x + B, so the mean over N(m, v) is (((A-1) m + B)² + (A-1)² v)/4, a quarter because [0, 1] is half as wide.
    at_0, at_1 = (by_hand(alpha, tau, x, m, v) for x in (0.0, 1.0))
    A, B = at_1 - at_0, at_0
    assert (((A - 1) * m + B) ** 2 + (A - 1) ** 2 * v) / 4 == pytest.approx(expected, rel=5e-3)


def test_the_reconstruction_study_measures_the_held_out_images(process, recwarn):
    m, v, held_out = 0.1, 0.16, images(7)
    study = Reconstruction(n=5, steps=[20, 10, 2000], block=2, shown=3)
    model = model_of(gaussian(process, torch.full(SHAPE, m), v))
    noisy = Generalized(steps=50, sigma=SigmaHat(), tau=Uniform(), clip=True)
    result = study.run(model, noisy, data_of(held_out), None, None)
    assert [row.params["S"] for row in result.rows] == [10, 20] and result.rows[0].n == 5
    alpha, x_0 = process.schedule.alpha.tolist(), from_uint8(held_out[:5]).double()
    for S in (10, 20):
        tau = [t for t, _ in reversed(replace(noisy, steps=S).pairs(1000))]
        hand = x_0.clone().apply_(lambda x, tau=tau: by_hand(alpha, tau, x, m, v))
        assert value(result, "reconstruction_mse", S=S) == pytest.approx(squared_error(hand, x_0).mean().item(), rel=1e-3)
    assert (result.card["sigma"], result.card["clip"], result.card["tau"]) == ("Eta(eta=0.0)", False, "Uniform()")
    assert len(recwarn) == 0  # it does not start at noise
    assert result.pictures.keys() == {"reconstruction"} and "paper" not in result.tables[0].columns
    plot, errors = result.plots["reconstruction_error"], result.arrays["reconstruction"]
    assert plot.log_x and plot.log_y and errors["squared_error_S10"].mean() == pytest.approx(result.rows[0].value)
    with pytest.raises(ValueError, match="n=0: at least 1 image"):
        replace(study, n=0)
    own = data_of(held_out)
    own.source = type("CIFAR10", (), {})()
    result = study.run(model, noisy, own, None, None)
    assert result.tables[0].columns[-1] == "paper" and result.tables[0].rows[0][-1] == "0.014"


def test_a_sampler_whose_tau_is_one_list_cannot_show_several_S(blobs):
    fixed = Generalized.with_eta(None, 0.0, [1, 500, 1000], True)
    for study in (Reconstruction(2, [10], 2, 2), Consistency(2, [10], {}, 2, 0, 2)):
        with pytest.raises(CannotServe, match=r"sampler\.tau is one list; use a rule: sampler/tau=uniform"):
            study.run(blobs, fixed, data_of(images(2)), None, None)


def test_each_S_is_at_most_T():
    assert each_S(SAMPLER, [100, 10, 10, 2000], 100) == [10, 100]
    assert each_S(SAMPLER, [20, 50], 10) == [10]
    with pytest.raises(ValueError, match="at least one S"):
        each_S(SAMPLER, [0, 10], 100)


# Interpolation


def test_slerp_ends_exactly_and_stays_on_the_sphere_between():
    first, last = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    a = torch.linspace(0, 1, 5)
    path = slerp(first, last, a)
    assert torch.equal(path[0], first) and torch.equal(path[-1], last)
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(path[2], torch.tensor([3.0, 3.0, 0.0]) / 2**0.5)
    angles = torch.atan2(path[:, 1], path[:, 0])
    torch.testing.assert_close(angles, a * math.pi / 2)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0, -0.5])
def test_slerp_between_noises_on_one_line_is_that_line(factor):
    first = randn(*SHAPE)
    path = slerp(first, factor * first, torch.tensor([0.0, 0.25, 1.0]))
    assert torch.equal(path[0], first) and torch.equal(path[-1], factor * first)
    torch.testing.assert_close(path[1], (0.75 + 0.25 * factor) * first)
    assert slerp(torch.zeros(2), torch.ones(2), torch.tensor([0.5])).isfinite().all()


def test_slerp_of_two_noises_is_noise():
    """N(0, I) at every point: mean 0, variance 1 in each dimension, where the straight line has variance 1/2."""
    pairs = randn(4000, 2, 16, seed=5)
    middle = torch.stack([slerp(first, last, torch.tensor([0.5]))[0] for first, last in pairs])
    assert middle.mean().abs() < 4 / (4000 * 16) ** 0.5
    assert middle.var().item() == pytest.approx(1, abs=4 * (2 / (4000 * 16)) ** 0.5)
    assert pairs.mean(1).var() < 0.52


def test_interpolation_ends_at_the_images_of_its_seeds(blobs):
    study = Interpolation(rows=2, columns=5, seed=3, block=4)
    result = study.run(blobs, replace(SAMPLER, sigma=Eta(1.0)), None, None, None)
    ends = to_uint8(sampled(blobs, SAMPLER, 4, seed=3, block=4))
    factor = result.pictures["interpolation"].shape[1] // (5 * 5 + 1)
    picture = torch.from_numpy(result.pictures["interpolation"][::factor, ::factor, 0].copy())
    for row in range(2):
        for column, image in ((0, ends[2 * row]), (4, ends[2 * row + 1])):
            shown = picture[1 + 5 * row : 5 + 5 * row, 1 + 5 * column : 5 + 5 * column]
            assert (shown.int() - image[0].int()).abs().max() <= 1
    assert result.card["sigma"] == "Eta(eta=0.0)" and "η = 0" in result.lines[0]
    assert value(result, "rmse_neighbours") <= value(result, "rmse_ends")


# Consistency


def test_only_ddim_keeps_the_image_when_S_changes(blobs):
    study = Consistency(n=24, steps=[10, 50, 100, 5000], samplers=BOTH, shown=3, seed=0, block=24)
    result = study.run(blobs, SAMPLER, None, None, None)
    kept = [value(result, "rmse_same_x_T", sigma="Eta(eta=0.0)", S=S) for S in (10, 50)]
    lost = value(result, "rmse_same_x_T", sigma="Eta(eta=1.0)", S=10)
    apart = value(result, "rmse_unrelated", sigma="Eta(eta=0.0)")
    assert kept[1] < kept[0] < apart / 5 and lost > apart / 2
    made = {S: to_uint8(sampled(blobs, replace(SAMPLER, steps=S), 24, seed=0, block=24)).double() for S in (10, 100)}
    assert kept[0] == pytest.approx((made[10] - made[100]).square().mean((1, 2, 3)).sqrt().mean().item())
    assert result.pictures.keys() == {"consistency_ddim", "consistency_ddpm"}


# Trajectory


def test_the_animation_starts_at_noise_and_ends_where_both_sides_agree(blobs):
    study = Trajectory(samplers=BOTH, n=4, frames=6, seed=1)
    result = study.run(blobs, SAMPLER, None, None, None)
    frames = result.pictures["trajectory_animation"]
    assert frames.shape[0] == 6 and frames.dtype == "uint8"
    factor = frames.shape[2] // (5 * 5 + 1)  # 5 columns of 4 pixels, with their gaps
    small = torch.from_numpy(frames[:, ::factor, ::factor, 0].copy())
    left, right = small[:, :, 1:10], small[:, :, 16:25]
    assert torch.equal(left[-1], right[-1]) and not torch.equal(left[0], right[0])
    x_T = to_uint8(ImageNoise(range(4), SHAPE, 1)())
    assert torch.equal(left[0][1:5, 0:4], x_T[0, 0]) and torch.equal(left[0][1:5, 5:9], x_T[1, 0])


def test_a_strip_a_sampler_the_given_one_in_the_place_of_its_like(blobs):
    result = Trajectory(samplers=BOTH, n=2, frames=3, seed=1).run(blobs, SAMPLER, None, None, None)
    assert list(result.card["beside"]) == ["η = 0", "η = 1"] and result.card["beside"]["η = 0"]["S"] == 20
    assert [curve.label for curve in result.plots["trajectory_settling"].curves] == ["η = 0", "η = 1"]
    result = Trajectory(samplers=BOTH, n=2, frames=3, seed=1).run(blobs, SOLVER, None, None, None)
    assert list(result.card["beside"]) == ["η = 0", "η = 1", "DPMSolverPP"] and result.card["sampler"] == "DPMSolverPP"
    assert "From above: η = 0; η = 1; DPMSolverPP." in result.captions["trajectory_steps"]
    # Six rows of eleven columns; DDIM in 7 steps fills eight of them, white are the rest.
    picture = result.pictures["trajectory_steps"]
    factor = picture.shape[1] // (11 * 5 + 1)
    small = torch.from_numpy(picture[::factor, ::factor, 0].copy())
    assert small.shape == (6 * 5 + 1, 11 * 5 + 1)
    strips = [to_uint8(states(blobs, one, 1)) for one in (BOTH["ddim"], SOLVER)]
    for row, strip in ((0, strips[0]), (4, strips[1])):
        for column in range(strip.shape[1]):
            shown = small[1 + 5 * row : 5 + 5 * row, 1 + 5 * column : 5 + 5 * column]
            assert torch.equal(shown, strip[0, column, 0]), (row, column)
    assert (small[1:10, 8 * 5 + 1 :] == 255).all()


def test_a_sampler_that_a_study_has_takes_no_more_steps_than_T():
    process = GaussianProcess(Linear(T=5))
    model = model_of(gaussian(process, torch.zeros(SHAPE), 0.25))
    result = Trajectory(BOTH, 1, 2, 0).run(model, replace(SAMPLER, steps=3), None, None, None)
    assert [one["S"] for one in result.card["beside"].values()] == [3, 5]


def test_a_large_image_makes_a_small_animation():
    process = GaussianProcess(Linear(T=20))
    model = model_of(gaussian(process, torch.zeros(3, 32, 32), 0.25), (3, 32, 32))
    frames = Trajectory({}, 16, 20, 0)._animation(model, Generalized.with_eta(19, 0.0, Trailing(), True))
    side = 2
    assert 2 * side**2 * 20 * 3 * 32 * 32 <= BUDGET < 2 * (side + 1) ** 2 * 20 * 3 * 32 * 32
    factor = 960 // ((2 * side + 1) * 33 + 1)
    assert frames.shape == (20, factor * (side * 33 + 1), factor * ((2 * side + 1) * 33 + 1), 3)


def test_a_path_is_the_samplers_own(blobs):
    states = list(path(blobs, SAMPLER, 3, seed=4))
    assert [t for t, _, _ in states] == [*(t for t, _ in SAMPLER.pairs(1000)), 0]
    assert torch.equal(states[-1][1], sampled(blobs, SAMPLER, 3, seed=4, block=3))


def test_tables_and_curves_are_whole_and_named_and_every_picture_has_its_caption():
    model = model_of(gaussian(GaussianProcess(Linear(T=20)), torch.zeros(SHAPE), 0.25))
    plane = model_of(gaussian(GaussianProcess(Linear(T=20)), torch.zeros(2, 1, 1), 0.25), (2, 1, 1))
    for study, one, data in (
        (Reconstruction(n=4, steps=[5, 10], block=4, shown=2), model, data_of(images(6))),
        (Interpolation(rows=1, columns=3, seed=0, block=3), model, None),
        (Consistency(n=4, steps=[5, 10], samplers=BOTH, shown=2, seed=0, block=4), model, None),
        (Trajectory(samplers=BOTH, n=2, frames=3, seed=0), model, None),
        (OneStep(n=4, steps=5, shown=2, seed=0, block=4), model, data_of(images(6))),
        (Plane(n=4, ways=2, etas=[0.0, 1.0], points=[4], seed=0, block=4), plane, rings_data()),
        (Objective(n=3, etas=[1.0, 0.5], perturbation=0.3, seed=0, block=4), model, data_of(images(6))),
        (Likelihood(n=3, eta=1.0, variance="sigma", steps=None, seed=0, block=4), model, data_of(images(6))),
        (Schedules({"linear": Linear(20)}, {"elbo": Elbo(1.0)}, [0.5, 1.0]), model, None),
    ):
        result = study.run(one, replace(SAMPLER, steps=5), data, None, None)
        words = [result.title, result.about, *result.lines, *result.captions.values()]
        for table in result.tables:
            words += [table.title, *table.columns, table.note or "-" * (table.note == "" and isinstance(study, Schedules))]
            assert table.rows and all(len(row) == len(table.columns) for row in table.rows)
        for plot in result.plots.values():
            words += [plot.caption, plot.x, plot.y, *(curve.label for curve in plot.curves)]
            assert plot.curves and all(len(curve.x) == len(curve.y) > 0 for curve in plot.curves)
        assert all(isinstance(word, str) and word for word in words), result.study
        assert result.pictures.keys() == result.captions.keys()
        assert not result.arrays or all(result.arrays.values())


# Another solver, and what it cannot do


def test_a_solver_without_eta_serves_where_none_is_needed(blobs):
    data = data_of(images(16))
    result = Interpolation(rows=2, columns=5, seed=3, block=4).run(blobs, SOLVER, data, None, None)
    assert result.card["sampler"] == "DPMSolverPP" and result.lines[0].startswith("interpolation:")
    result = OneStep(n=4, steps=10, shown=2, seed=0, block=4).run(blobs, SOLVER, data, None, None)
    assert result.card["beside"] == {"sampler": "DPMSolverPP", "S": 10, "tau": "Trailing()", "clip": True, "limit": 10.0}
    result = Consistency(n=24, steps=[10, 50, 100], samplers=BOTH, shown=3, seed=0, block=24).run(
        blobs, SOLVER, data, None, None
    )
    assert result.pictures.keys() == {"consistency_ddim", "consistency_ddpm", "consistency_given"}
    apart = value(result, "rmse_unrelated", sampler="DPMSolverPP")
    assert value(result, "rmse_same_x_T", sampler="DPMSolverPP", S=10) < apart / 5
    assert [row[0] for row in result.tables[0].rows] == ["η = 0", "η = 1", "DPMSolverPP"]


def cosine(m=0.1, v=0.16, parameterization=None):
    return model_of(gaussian(GaussianProcess(Cosine()), torch.full(SHAPE, m, dtype=torch.float64), v, parameterization))


def test_reconstruction_reaches_S_T_where_all_steps_would_be_refused():
    held_out, unclipped = images(4), replace(SAMPLER, clip=False)
    study = Reconstruction(n=4, steps=[10, 100, 1000], block=4, shown=2)
    with pytest.raises(Amplifies):  # at S = T, as it stands
        replace(unclipped, steps=None).check(cosine().denoiser.process, Eps())
    result = study.run(cosine(), replace(unclipped, tau=Uniform()), data_of(held_out), None, None)
    last = 935
    assert cosine().denoiser.process.alpha(last) >= 0.01 > cosine().denoiser.process.alpha(last + 1)
    assert [row.params["S"] for row in result.rows] == [10, 100, last]
    errors = [row.value for row in result.rows]
    assert errors[0] > 5 * errors[1] > 25 * errors[2] and errors[2] < 1e-5
    assert (result.card["tau"], result.card["S"]) == (f"UpTo(rule=Uniform(), last={last})", [10, 100, last])
    assert f"1..{last}, α = 0.01 at its end, not from 1..1000: the unclipped step from t=1000 to 999" in result.lines[0]


def test_reconstruction_takes_every_step_where_none_is_refused():
    for model in (cosine(parameterization=V()), model_of(gaussian(GaussianProcess(Linear()), torch.zeros(SHAPE), 0.2))):
        result = Reconstruction(2, [1000], 2, 2).run(model, SAMPLER, data_of(images(2)), None, None)
        assert result.card["tau"] == "Trailing()" and result.rows[0].params["S"] == 1000 and len(result.lines) == 1


def test_an_S_that_is_refused_is_left_out_with_its_reason():
    x0 = model_of(gaussian(GaussianProcess(Linear()), torch.zeros(SHAPE), 0.2, X0()))
    uniform, data = replace(SAMPLER, tau=Uniform()), data_of(images(2))
    result = Reconstruction(2, [10, 100], 2, 2).run(x0, uniform, data, None, None)
    assert [row.params["S"] for row in result.rows] == [100]
    assert result.lines[0].startswith("reconstruction: S = 10 is left out: the unclipped step from t=1 to 101 multiplies")
    with pytest.raises(CannotServe, match=r"S = 10 is left out.*sampler/tau=trailing"):
        Reconstruction(2, [10], 2, 2).run(x0, uniform, data, None, None)


def test_what_needs_an_encoder_or_eta_says_so_in_one_line(blobs):
    for study, sampler, data, why in (
        (Reconstruction(2, [10], 2, 2), SOLVER, data_of(images(2)), "DPMSolverPP has no encoder; use sampler=ddim"),
        (Plane(4, 1, [0.0], [4], 0, 4), SOLVER, rings_data(), "η, and DPMSolverPP has none; use sampler=ddim"),
        (Interpolation(1, 3, 0, 3), Restless(steps=3, tau=Trailing(), clip=True), None, "the sampler adds noise"),
    ):
        with pytest.raises(CannotServe, match=why) as said:
            study.run(blobs, sampler, data, None, None)
        assert "\n" not in str(said.value)


@dataclass(frozen=True, kw_only=True)
class Restless(AlongTau):
    """A solver without η that draws noise."""

    def step(self, denoiser, x_t, t, s, noise, before):
        eps, x_0 = self.predict(denoiser, x_t, t)
        return Step(t, s, denoiser.process.q_sample(x_0, s, noise()), x_0, eps)


# One step


def test_the_networks_error_is_amplified_157_times_by_ddpms_schedule(process):
    a = process.alpha(1000).item()
    assert amplification(process, Eps()) == pytest.approx(math.sqrt((1 - a) / a)) == pytest.approx(157, abs=0.5)
    assert amplification(process, X0()) == pytest.approx(1) and amplification(process, V()) == pytest.approx(
        math.sqrt(1 - a)
    )
    assert amplification(GaussianProcess(ZeroTerminalSNR(Linear())), V()) == 1


class Off(torch.nn.Module):
    """A network whose output is off by a constant."""

    def __init__(self, network, by):
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x_t, t):
        return self.network(x_t, t) + self.by


@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=["eps", "x0", "v"])
@pytest.mark.parametrize("zero", [False, True], ids=["linear", "zero_terminal_snr"])
def test_one_step_is_the_mean_and_the_amplified_error(process, parameterization, zero):
    if zero and isinstance(parameterization, Eps):
        pytest.skip("no eps at α_T = 0")
    q = GaussianProcess(ZeroTerminalSNR(Linear())) if zero else process
    train, v, by = images(50, seed=8), 0.16, 0.01
    mean, _ = mean_and_spread(train)
    exact = gaussian(q, mean, v, parameterization)
    study = OneStep(n=16, steps=10, shown=4, seed=0, block=8)
    perfect = study.run(model_of(exact), SAMPLER, data_of(images(16), train), None, None)
    a, amplified = q.alpha(1000).item(), amplification(q, parameterization) * by
    # f(x_T) = m + √α v/c (x_T - √α m): all that x_T says of x_0.
    assert value(perfect, "one_step_rmse_to_mean") == pytest.approx(math.sqrt(a) * v, rel=0.25, abs=1e-4)
    assert value(perfect, "one_step_sd") < value(perfect, "data_sd") / 20
    assert "one step: nearly the mean of the data. " in perfect.lines[0] and value(perfect, "one_step_saturated") < 0.05
    wrong = Denoiser(Off(exact.network, by), q, parameterization)
    result = study.run(model_of(wrong), SAMPLER, data_of(images(16), train), None, None)
    assert value(result, "one_step_rmse_to_mean") == pytest.approx(amplified, rel=0.02)
    says = "the picture is the network's error, amplified" if amplified > 1 else "nearly the mean of the data"
    assert f"one step: {says}. " in result.lines[0] and f"times {amplification(q, parameterization):.4g}" in result.lines[0]
    assert (value(result, "one_step_saturated") > 0.9) == (amplified > 1) and result.card["limit"] is None
    assert all(math.isfinite(row.value) for row in result.rows)
    assert result.card["tau"] == "Explicit(values=(1000,))" and result.card["S"] == 1


def test_what_one_step_shows_follows_from_how_far_it_lies():
    assert seen(0.1) == "nearly the mean of the data" and seen(1000) == "the picture is the network's error, amplified"
    assert seen(0.5) == "the mean of the data under the network's error, amplified"


def test_the_error_of_a_root_is_that_of_the_mean_over_twice_the_root():
    assert root(torch.tensor([3.0, 5.0])) == pytest.approx((2, 1 / 4))
    assert root(torch.tensor([4.0])) == (2, None) and root(torch.zeros(2)) == (0, None)


def test_the_error_at_T_is_that_of_the_output_and_of_eps(process):
    exact = gaussian(process, torch.zeros(SHAPE), 0.25, V())
    x_0, eps = 0.5 * randn(64, *SHAPE), randn(64, *SHAPE, seed=1)
    found = errors_at_T(exact, x_0, eps)
    # v = √α eps - √(1-α) x_0 and x_T leave E x_0², but for what x_T tells; eps is off by √α of that.
    a = process.alpha(1000).item()
    assert found["output"].mean().item() == pytest.approx(0.25, rel=0.15)
    assert found["eps"].mean().item() == pytest.approx(a * found["output"].mean().item(), rel=1e-3)


def test_mean_and_spread_are_those_of_all_images():
    train = Digits().train
    mean, spread = mean_and_spread(train)
    all_of_them = from_uint8(train).double()
    torch.testing.assert_close(mean.double(), all_of_them.mean(0), rtol=0, atol=1e-6)
    assert spread == pytest.approx((all_of_them - all_of_them.mean(0)).square().mean().sqrt().item(), rel=1e-6)


# In the plane


def rings_data():
    source = Rings()
    return SimpleNamespace(held_out=source.held_out, train=source.train, hash="h", source=source, shape=(2, 1, 1))


def test_the_optimal_denoiser_of_few_points_gives_them_back(process):
    data = rings_data()
    blurred = mixture(process, from_uint8(data.train[:512]), 0.1**2)
    study = Plane(n=48, ways=2, etas=[0.0, 1.0], points=[8], seed=0, block=48)
    # down to t = 1: a grid that ends higher returns means of several points
    sampler = Generalized.with_eta(100, 0.0, Uniform(), True)
    result = study.run(model_of(blurred, (2, 1, 1)), sampler, data, None, None)
    for eta in (0.0, 1.0):
        assert value(result, "distance_to_known_point", denoiser="optimal, 8 points", eta=eta) < 0.01
        assert value(result, "distance_to_ring", denoiser="network", eta=eta) > 0.05
    real = {row.anchors["held-out images"].value for row in result.rows if row.metric == "distance_to_ring"}
    # E|N(0, 0.02²)|, with a little more from rounding to 256 levels
    assert len(real) == 1 and real.pop() == pytest.approx(0.02 * math.sqrt(2 / math.pi), rel=0.05)
    assert {name: picture.shape[2] for name, picture in result.pictures.items()} == dict.fromkeys(
        ("plane_samples", "plane_trajectories"), 3
    )


def test_an_optimal_denoiser_stands_beside_the_network_with_its_card_and_the_points_it_knows(blobs):
    train = randn(6, 2, 1, 1)
    found = exact_ones(replace(blobs, shape=(2, 1, 1)), train, [4, 100, 4])
    assert list(found) == ["optimal, 4 points", "optimal, 6 points"]
    for (one, known), K in zip(found.values(), (4, 6), strict=True):
        assert torch.equal(known, train[:K]) and one.card == blobs.card and one.shape == (2, 1, 1)
        assert one.denoiser.process is blobs.denoiser.process


def test_distances_in_the_plane():
    points = torch.tensor([[0.0, 0.3], [0.0, 0.9], [0.6, 0.0]])
    torch.testing.assert_close(to_ring(points, torch.tensor([0.4, 0.8])), torch.tensor([0.1, 0.1, 0.2]))
    torch.testing.assert_close(to_point(points, points[:1]), torch.tensor([0, 0.6, 0.45**0.5], dtype=torch.float64))


def test_the_plane_refuses_images(blobs):
    with pytest.raises(CannotServe, match="needs a run of data=rings, not"):
        Plane(4, 1, [0.0], [4], 0, 4).run(blobs, SAMPLER, data_of(images(2)), None, None)
