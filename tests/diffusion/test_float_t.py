"""t between two steps: log-SNR is linear there, and whole numbers are the table's own."""

import math

import pytest
import torch
from conftest import gaussian, randn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

SCHEDULES = {"linear": Linear(), "cosine": Cosine(), "short": Linear(10), "zero terminal": ZeroTerminalSNR(Linear(37))}


@pytest.fixture(params=SCHEDULES)
def q(request):
    return GaussianProcess(SCHEDULES[request.param])


def test_whole_numbers_hit_the_table_exactly(q):
    every = torch.arange(q.T + 1)
    for t in (every.double(), every.float()):
        assert torch.equal(q.alpha(t), q.schedule.alpha)
    assert all(torch.equal(q.alpha(float(t)), q.schedule.alpha[t]) for t in (0, 1, 7, q.T))
    assert torch.equal(q.log_snr(every), q.log_snr(every.double()))


def test_log_snr_is_that_of_alpha(q):
    assert q.log_snr(0) == math.inf and (q.alpha(q.T) > 0 or q.log_snr(q.T) == -math.inf)
    for t in (1, q.T // 2, q.T - 1):
        a = q.alpha(t).item()
        assert q.log_snr(t).item() == pytest.approx(math.log(a / (1 - a)), rel=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_log_snr_is_linear_between_two_steps(q, share):
    for t in (1, q.T // 2, q.T - 2):
        expected = (1 - share) * q.log_snr(t) + share * q.log_snr(t + 1)
        torch.testing.assert_close(q.log_snr(t + share), expected, rtol=1e-9, atol=1e-9)
        rows = q.log_snr(torch.tensor([t + share, t], dtype=torch.float64))
        torch.testing.assert_close(rows, torch.stack([expected, q.log_snr(t)]), rtol=1e-9, atol=1e-9)


def test_alpha_falls_all_the_way_and_has_no_gap(q):
    t = torch.linspace(0, q.T, 20 * q.T + 1, dtype=torch.float64)
    alpha = q.alpha(t)
    assert alpha.dtype == torch.float64 and alpha.isfinite().all() and (alpha.diff() < 0).all()
    assert (alpha.diff().abs() < 1.2 * q.schedule.alpha.diff().abs().max()).all()


def test_where_log_snr_has_no_end_alpha_is_linear():
    q = GaussianProcess(ZeroTerminalSNR(Linear(37)))
    assert q.alpha(0.25).item() == pytest.approx(0.75 + 0.25 * q.alpha(1).item(), rel=1e-12)
    assert q.alpha(36.5).item() == pytest.approx(q.alpha(36).item() / 2, rel=1e-12)


@pytest.mark.parametrize("t", [-0.5, 10.5, -1, 11, math.nan])
def test_outside_0_to_T_there_is_nothing(t):
    with pytest.raises(IndexError, match=r"0\.\.10"):
        Linear(10)(t)


def test_everything_built_on_the_schedule_reads_between_steps(process):
    x_0, eps = randn(3, 1), randn(3, 1, seed=1)
    x_t = process.q_sample(x_0, 437.25, eps)
    torch.testing.assert_close(process.x_0(x_t, 437.25, eps), x_0, rtol=0, atol=1e-12)
    rows = process.q_sample(x_0, torch.full((3,), 437.25, dtype=torch.float64), eps)
    torch.testing.assert_close(rows, x_t, rtol=0, atol=1e-12)
    prediction = gaussian(process, torch.zeros(1, dtype=torch.float64), 0.3)(x_t, 437.25)
    a = process.alpha(437.25)
    torch.testing.assert_close(prediction.x_0, a.sqrt() * 0.3 / (a * 0.3 + 1 - a) * x_t, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "t", "dtype"),
    [
        (torch.float32, 3, torch.long), (torch.float32, 3.5, torch.float32), (torch.bfloat16, 3.5, torch.float32),
        (torch.float64, 3.5, torch.float64),
    ],
)  # fmt: skip
def test_the_network_gets_t_whole_or_not_as_it_is(process, x, t, dtype):
    asked = []
    Denoiser.of(lambda x_t, t: asked.append(t) or x_t, process.schedule)(randn(2, 1, dtype=x), t)
    assert torch.equal(asked[0], torch.tensor([t, t], dtype=dtype)) and asked[0].dtype == dtype
