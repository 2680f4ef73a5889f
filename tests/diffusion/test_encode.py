import math

import pytest
import torch
from conftest import gaussian, mixture, no_noise, randn
from torch import nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Quadratic, Trailing, Uniform
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

M, VARIANCE = 0.7, 0.3
TAUS = [(50, Trailing()), (10, Uniform()), (None, Uniform()), (None, [1000, 300, 10]), (None, [1000]), (100, Quadratic())]


def ddim(tau, clip=False, eta=0.0) -> Generalized:
    # Denoisers without error: whatever a step multiplies, it is nothing.
    return Generalized.with_eta(tau[0], eta, tau[1], clip, limit=None)


def predicted(a: float, x: float) -> tuple[float, float]:
    """E[x_0 | x_t = x] and E[eps | x_t = x] for data N(M, VARIANCE)."""
    c, residual = a * VARIANCE + 1 - a, x - math.sqrt(a) * M
    return M + math.sqrt(a) * VARIANCE / c * residual, math.sqrt(1 - a) / c * residual


def up(alpha: list[float], tau: list[int], x: float) -> float:
    """The encoding by hand: x/√α grows by eps times the growth of √((1-α)/α), DDIM eq. 13 read upwards."""
    for s, t in zip([0, *tau[:-1]], tau, strict=True):
        eps = predicted(alpha[s or t], x)[1]
        growth = math.sqrt((1 - alpha[t]) / alpha[t]) - math.sqrt((1 - alpha[s]) / alpha[s])
        x = math.sqrt(alpha[t]) * (x / math.sqrt(alpha[s]) + growth * eps)
    return x


def down(alpha: list[float], tau: list[int], x: float) -> float:
    for t, s in zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True):
        x_0, eps = predicted(alpha[t], x)
        x = x if s == t else math.sqrt(alpha[s]) * x_0 + math.sqrt(1 - alpha[s]) * eps
    return x


@pytest.mark.equation("encoding")
@pytest.mark.parametrize("tau", TAUS, ids=str)
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=["eps", "x0", "v"])
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_there_and_back_is_the_affine_map_of_gaussian_data(process, tau, parameterization):
    denoiser = gaussian(process, torch.full((1,), M, dtype=torch.float64), VARIANCE, parameterization)
    alpha, rising, x_0 = process.schedule.alpha.tolist(), [t for t, _ in reversed(ddim(tau).pairs(1000))], randn(5, 1)
    code = ddim(tau).encode(denoiser, x_0)
    back = ddim(tau)(denoiser, code, no_noise)
    for x, found, returned in zip(x_0, code, back, strict=True):
        expected = up(alpha, rising, x.item())
        assert found.item() == pytest.approx(expected, abs=1e-10)
        assert returned.item() == pytest.approx(down(alpha, rising, expected), abs=1e-10)


def test_with_all_steps_the_way_back_ends_near_the_start(process):
    denoiser, x_0 = mixture(process, randn(3, 1, 2, 2, seed=1), 0.3), randn(4, 1, 2, 2)
    errors = []
    for steps in (10, 100, None):
        chosen = ddim((steps, Trailing()))
        errors.append((chosen(denoiser, chosen.encode(denoiser, x_0), no_noise) - x_0).abs().max().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.02


class Spy(nn.Module):
    """Remembers every t it is asked for."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, t):
        self.asked.append(int(t[0]))
        return torch.zeros_like(x_t)


@pytest.mark.parametrize(
    "tau, asked",
    [
        ((None, [1, 10, 300]), [1, 1, 10]),
        ((None, [1000, 500, 20]), [20, 20, 500]),
        ((None, [7]), [7]),
        ((None, [5, 9, 9, 20]), [5, 5, 9]),
        ((4, Uniform()), [1, 1, 251, 501]),
    ],
    ids=str,
)
def test_the_network_is_asked_at_the_lower_end_and_at_tau_1_first(process, tau, asked):
    spy = Spy()
    steps = list(ddim(tau).encoding(Denoiser(spy, process, Eps()), randn(2, 1)))
    assert spy.asked == asked
    rising = sorted({t for t, _ in ddim(tau).pairs(1000)})
    assert [(step.t, step.s) for step in steps] == list(zip([0, *rising[:-1]], rising, strict=True))


def test_neither_sigma_nor_clipping_enters(process):
    denoiser, x_0 = gaussian(process, torch.full((1,), 3.0), 0.3), 3 * randn(4, 1)
    plain, other = (ddim((20, Trailing()), clip, eta).encode(denoiser, x_0) for clip, eta in ((False, 0.0), (True, 1.0)))
    assert torch.equal(plain, other)


def test_where_no_signal_is_left_the_code_is_the_noise():
    q = GaussianProcess(ZeroTerminalSNR(Linear()))
    denoiser, x_0 = gaussian(q, torch.zeros(1), 0.3, V()), randn(5, 1)
    *_, last = ddim((None, Uniform())).encoding(denoiser, x_0)
    assert last.s == 1000 and last.x_s.isfinite().all()
    # The flow of a Gaussian scales: x_0 at so many standard deviations ends at as many.
    torch.testing.assert_close(last.x_s, x_0 / 0.3**0.5, rtol=0.02, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_dtype_of_the_state_is_kept(process, dtype):
    assert ddim((5, Trailing())).encode(gaussian(process, torch.zeros(1), 0.3), randn(2, 1, dtype=dtype)).dtype == dtype
