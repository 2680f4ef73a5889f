"""DPM-Solver++(2M): its algorithm as written, its order, and where it is DDIM."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import gaussian, mixture, no_noise, randn

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import V
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing, Uniform
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR

MEANS, VARIANCE = torch.tensor([[-0.8], [0.1], [0.9]], dtype=torch.float64), 0.02


def solver(steps, tau, clip=False) -> DPMSolverPP:
    # Denoisers without error: whatever a step multiplies, it is nothing.
    return DPMSolverPP(steps=steps, tau=tau, clip=clip, limit=None)


def by_hand(q, denoiser, tau, x):
    """Algorithm 2 letter by letter: λ = ln(α/σ), σ_i/σ_{i-1} x - α_i (e^{-h_i} - 1) D_i, in the paper's α = √α_t."""
    a = q.schedule.alpha.sqrt()
    sigma = (1 - q.schedule.alpha).sqrt()
    lam = (a / sigma).log()
    seen, h_before = [], None
    for t, s in zip(tau, [*tau[1:], 0], strict=True):
        seen.append(denoiser(x, t).x_0)
        h = lam[s] - lam[t]
        D = seen[-1]
        if len(seen) > 1 and s > 0:
            r = h_before / h
            D = (1 + 1 / (2 * r)) * seen[-1] - 1 / (2 * r) * seen[-2]
        x, h_before = sigma[s] / sigma[t] * x - a[s] * ((-h).exp() - 1) * D, h
        yield x


@pytest.mark.equation("solver")
@pytest.mark.parametrize("tau", [[1000, 900, 500, 120, 7, 1], [1000, 999], [1000]], ids=str)
def test_it_is_algorithm_2_of_the_paper(process, tau):
    denoiser, x_T = mixture(process, MEANS, VARIANCE), randn(5, 1)
    states = [step.x_s for step in solver(None, tau).trajectory(denoiser, x_T, no_noise)]
    for found, expected in zip(states, by_hand(process, denoiser, tau, x_T), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_two_steps_and_one_are_those_of_ddim(process):
    # The first step and the last are of first order: there is nothing between them to be led on.
    denoiser, x_T = mixture(process, MEANS, VARIANCE), randn(5, 1)
    for tau in ([1000], [1000, 300]):
        ddim = Generalized.with_eta(None, 0.0, tau, False, limit=None)
        torch.testing.assert_close(
            solver(None, tau)(denoiser, x_T, no_noise), ddim(denoiser, x_T, no_noise), rtol=0, atol=1e-12
        )


def quantile(q, t, x, s):
    """x_s with F_s(x_s) = F_t(x_t): in one dimension the flow keeps the order of points, so this is where it leads."""

    def below(t, x):
        a = q.alpha(t)
        return torch.special.ndtr((x - a.sqrt() * MEANS.T) / (a * VARIANCE + 1 - a).sqrt()).mean(1, keepdim=True)

    low, high, share = x.new_full(x.shape, -20), x.new_full(x.shape, 20), below(t, x)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = torch.where(below(s, middle) < share, middle, low), torch.where(below(s, middle) < share, high, middle)
    return (low + high) / 2


def errors(solve, schedule, first, last, numbers) -> list[float]:
    """Largest error at t = `last` of S steps from t = `first`, S of `numbers`, against the exact flow of the mixture."""
    q = GaussianProcess(schedule)
    denoiser, x_T = mixture(q, MEANS, VARIANCE), torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
    exact, found = quantile(q, first, x_T, last), []
    for S in numbers:
        tau = [first + (last - first) * i // S for i in range(S + 1)]
        reached = {step.s: step.x_s for step in solve(tau).trajectory(denoiser, x_T, no_noise)}
        found.append((reached[last] - exact).abs().max().item())
    return found


@pytest.mark.parametrize("schedule", [Linear(8192), Cosine(8192)], ids=["linear", "cosine"])
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_it_is_of_second_order_and_ddim_of_first(schedule):
    numbers = [32, 64, 128, 256]
    second = errors(lambda tau: solver(None, tau), schedule, 7168, 1024, numbers)
    first = errors(lambda tau: Generalized.with_eta(None, 0.0, tau, False), schedule, 7168, 1024, numbers)
    for found, low, high in ((second, 1.7, 2.3), (first, 0.8, 1.3)):
        orders = [math.log2(a / b) for a, b in pairwise(found[1:])]
        assert all(low < order < high for order in orders), (found, orders)
    assert second[-1] < first[-1] / 20


def test_it_is_finite_where_no_signal_is_left():
    q = GaussianProcess(ZeroTerminalSNR(Linear()))
    denoiser, x_T = gaussian(q, torch.zeros(1, dtype=torch.float64), 0.25, V()), randn(5, 1)
    steps = list(solver(20, Trailing()).trajectory(denoiser, x_T, no_noise))
    assert all(step.x_s.isfinite().all() for step in steps)
    # Data N(0, 0.25): the flow scales x_T by their standard deviation.
    torch.testing.assert_close(steps[-1].x_s, x_T / 2, rtol=0.05, atol=0)


def test_the_last_step_is_predicted_x_0(process):
    *_, last = solver(10, Uniform(), True).trajectory(mixture(process, MEANS, VARIANCE), randn(4, 1), no_noise)
    assert last.s == 0 and torch.equal(last.x_s, last.x_0)
