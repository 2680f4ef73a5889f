import pytest
import torch
from conftest import mixture, no_noise, point_mass, randn
from torch import nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

ALL = [Eps(), X0(), V()]
NAMES = ["eps", "x0", "v"]


@pytest.fixture(scope="module")
def ends_at_zero() -> GaussianProcess:
    return GaussianProcess(ZeroTerminalSNR(Linear()))


def by_hand(name, a, x_0, eps):
    return {"eps": eps, "x0": x_0, "v": a**0.5 * eps - (1 - a) ** 0.5 * x_0}[name]


@pytest.mark.parametrize("name, parameterization", list(zip(NAMES, ALL, strict=True)), ids=NAMES)
@pytest.mark.parametrize("t", [1, 2, 500, 999, 1000])
def test_the_target_stands_for_the_pair_it_was_made_of(process, name, parameterization, t):
    x_0, eps = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    x_t, rows = process.q_sample(x_0, t, eps), torch.full((3,), t)
    target = parameterization.target(process, x_0, rows, eps)
    torch.testing.assert_close(target, by_hand(name, process.alpha(t).item(), x_0, eps), rtol=0, atol=1e-14)
    for time in (t, rows):
        prediction = parameterization.predict(process, target, x_t, time)
        torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-12)
        torch.testing.assert_close(prediction.x_0, x_0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
@pytest.mark.parametrize("t", [1, 500, 1000])
def test_any_output_gives_a_pair_tied_by_x_t(process, parameterization, t):
    output, x_t = randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    prediction = parameterization.predict(process, output, x_t, t)
    torch.testing.assert_close(process.q_sample(prediction.x_0, t, prediction.eps), x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
def test_the_scales_are_what_an_output_error_becomes(process, parameterization):
    t = torch.tensor([1, 2, 500, 999, 1000])
    output, error, x_t = randn(5, 2), randn(5, 2, seed=1), randn(5, 2, seed=2)
    right, wrong = (parameterization.predict(process, o, x_t, t) for o in (output, output + error))
    eps, x_0 = wrong.eps - right.eps, wrong.x_0 - right.x_0
    v = V().target(process, x_0, t, eps)
    for found, scale in ((eps, parameterization.eps_scale(process, t)), (v, parameterization.v_scale(process, t))):
        assert scale.dtype == torch.float64 and scale.shape == (5,)
        torch.testing.assert_close(found.abs(), scale[:, None] * error.abs(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
def test_one_scale_is_the_other_times_the_root_of_alpha(process, parameterization):
    t = torch.arange(1, 1001)
    eps_scale, v_scale = parameterization.eps_scale(process, t), parameterization.v_scale(process, t)
    torch.testing.assert_close(eps_scale, process.alpha(t).sqrt() * v_scale, rtol=1e-14, atol=0)


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=NAMES[1:])
def test_x0_and_v_are_defined_where_no_signal_is_left(ends_at_zero, parameterization):
    q, x_0, eps = ends_at_zero, randn(3, 1, 2, 2), randn(3, 1, 2, 2, seed=1)
    x_T, t = q.q_sample(x_0, q.T, eps), torch.full((3,), q.T)
    assert torch.equal(x_T, eps)
    prediction = parameterization.predict(q, parameterization.target(q, x_0, t, eps), x_T, q.T)
    assert torch.equal(prediction.eps, eps) and torch.equal(prediction.x_0, x_0)
    assert parameterization.eps_scale(q, t).eq(0).all() and parameterization.v_scale(q, t).eq(1).all()


def test_eps_is_refused_where_no_signal_is_left(ends_at_zero):
    with pytest.raises(ValueError, match=r"parameterization=eps.*zero_terminal_snr.*parameterization=v"):
        Denoiser(nn.Identity(), ends_at_zero, Eps())
    for parameterization in (X0(), V()):
        Denoiser(nn.Identity(), ends_at_zero, parameterization)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
def test_every_schedule_with_signal_is_accepted(process, parameterization):
    Denoiser(nn.Identity(), process, parameterization)


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=NAMES[1:])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_from_pure_noise_reaches_a_point(ends_at_zero, parameterization, eta):
    x, x_T = randn(1, 2, 2), randn(3, 1, 2, 2, seed=1)
    denoiser = point_mass(ends_at_zero, x, parameterization)
    x_0 = Generalized.with_eta(20, eta, Trailing(), False)(denoiser, x_T, lambda: randn(3, 1, 2, 2, seed=2))
    torch.testing.assert_close(x_0, x.expand(3, -1, -1, -1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("parameterization", [X0(), V()], ids=NAMES[1:])
def test_one_mind_speaks_in_every_parameterization(process, parameterization):
    means, x_T, chosen = randn(3, 1, 2, 2, seed=1), randn(4, 1, 2, 2), Generalized.with_eta(20, 0.0, Trailing(), True)
    found, expected = (chosen(mixture(process, means, 0.2, p), x_T, no_noise) for p in (parameterization, Eps()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("parameterization", ALL, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_state_is_kept(process, parameterization, dtype):
    x, t = randn(2, 1, 2, 2, dtype=dtype), torch.tensor([3, 900])
    assert parameterization.target(process, x, t, x).dtype == dtype
    assert [p.dtype for p in parameterization.predict(process, x, x, t)] == [dtype, dtype]
