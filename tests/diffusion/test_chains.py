"""What is Markov and what is not; DDPM's mean worked out; and the differential equation behind η = 0."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import CountingNoise, gaussian, mixture, no_noise, randn
from test_joint import coefficients

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear

MEANS = randn(3, 2, 2, seed=1)


@pytest.mark.equation("generative")
@pytest.mark.parametrize("sigma", [Eta(0.0), Eta(0.5), Eta(1.0), SigmaHat()], ids=str)
def test_the_generative_chain_is_markov(process, sigma):
    """From x_t on, the way down is the same whatever lay above t: x_t alone decides."""
    tau, denoiser, x_T, noises = [1, 20, 400, 700, 1000], mixture(process, MEANS, 0.1), randn(3, 2, 2), randn(5, 3, 2, 2)

    def walk(sampler, start, draws):
        return list(sampler.trajectory(denoiser, start, CountingNoise(x_T.shape, draws)))

    whole = walk(Generalized(steps=None, sigma=sigma, tau=tau, clip=False, limit=None), x_T, noises)
    with pytest.warns(UserWarning, match="pure noise"):
        rest = walk(Generalized(steps=None, sigma=sigma, tau=tau[:3], clip=False, limit=None), whole[1].x_s, noises[2:])
    assert all(torch.equal(a.x_s, b.x_s) for a, b in zip(whole[2:], rest, strict=True))
    solver = walk(DPMSolverPP(steps=None, tau=tau, clip=False, limit=None), x_T, ())
    with pytest.warns(UserWarning, match="pure noise"):
        rest = walk(DPMSolverPP(steps=None, tau=tau[:3], clip=False, limit=None), solver[1].x_s, ())
    assert not torch.allclose(solver[2].x_s, rest[0].x_s)  # a solver that looks back is no Markov chain


@pytest.mark.equation("inference")
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("schedule", [Linear(37), Cosine(37)], ids=["linear", "cosine"])
def test_only_at_eta_1_does_the_inference_forget_x_0(schedule, eta):
    """x_t given x_s and x_0, t = s+1, from the covariances of the drawn joint: x_0 has a weight of its own unless η = 1."""
    q = GaussianProcess(schedule)
    rows, a = coefficients(q, Eta(eta)), q.schedule.alpha.tolist()
    for t in range(2, q.T + 1):
        s, sigma = t - 1, Eta(eta)(q, t, t - 1)[0]
        x_t, x_s = rows[t], rows[s]
        gain = (x_t[1:] @ x_s[1:] / (x_s[1:] @ x_s[1:])).item()
        weight = (x_t[0] - gain * x_s[0]).item()
        variance = (x_t[1:] - gain * x_s[1:]).square().sum().item()
        g = math.sqrt((1 - a[t]) * max(1 - a[s] - sigma**2, 0)) / (1 - a[s])
        assert gain == pytest.approx(g, rel=1e-8, abs=1e-10), t
        assert weight == pytest.approx(math.sqrt(a[t]) - g * math.sqrt(a[s]), rel=1e-6, abs=1e-10), t
        assert variance == pytest.approx((1 - a[t]) / (1 - a[s]) * sigma**2, rel=1e-8, abs=1e-10), t
        assert (abs(weight) < 1e-10) == (eta == 1), t
        if eta == 1:  # the kernel of DDPM
            assert gain**2 == pytest.approx(a[t] / a[s], rel=1e-8) and variance == pytest.approx(1 - a[t] / a[s], rel=1e-8)


@pytest.mark.equation("inference")
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_given_x_0_the_states_are_a_markov_chain_in_both_directions(eta):
    q = GaussianProcess(Linear(12))
    rows = coefficients(q, Eta(eta))
    inverse = torch.linalg.inv(torch.stack([torch.stack([rows[t][1:] @ rows[s][1:] for s in rows]) for t in rows]))
    apart = (torch.arange(q.T)[:, None] - torch.arange(q.T)).abs() > 1
    assert inverse[apart].abs().max() < 1e-8 * inverse.abs().max()  # no term of x_t with any but its neighbours


@pytest.mark.equation("ddpm")
def test_eta_1_worked_out_line_by_line(process):
    a = process.schedule.alpha.tolist()
    denoiser = mixture(process, MEANS, 0.1)
    sampler = Generalized.with_eta(None, 1.0, [1000], False)
    for t in (2, 3, 10, 300, 999, 1000):
        s, x_0, x_t = t - 1, randn(3, 2, 2, seed=t), randn(3, 2, 2, seed=t + 1)
        beta = 1 - a[t] / a[s]
        sigma, eps = Eta(1.0)(process, t, s)[0], process.eps(x_t, t, x_0)
        assert sigma**2 == pytest.approx((1 - a[s]) / (1 - a[t]) * beta, rel=1e-9)
        assert 1 - a[s] - sigma**2 == pytest.approx((1 - a[s]) ** 2 * (1 - beta) / (1 - a[t]), rel=1e-7)
        on_x_0, on_x_t = math.sqrt(a[s]) * beta / (1 - a[t]), math.sqrt(1 - beta) * (1 - a[s]) / (1 - a[t])
        assert math.sqrt(a[s]) - on_x_t * math.sqrt(a[t]) == pytest.approx(on_x_0, rel=1e-7)
        found = process.posterior_mean(x_0, eps, s, sigma)
        torch.testing.assert_close(found, on_x_0 * x_0 + on_x_t * x_t, rtol=0, atol=1e-9)
        guess = denoiser(x_t, t).eps  # DDPM algorithm 2, line 4
        expected = (x_t - beta / math.sqrt(1 - a[t]) * guess) / math.sqrt(1 - beta) + sigma * eps
        step = sampler.step(denoiser, x_t, t, s, lambda eps=eps: eps, ())
        torch.testing.assert_close(step.x_s, expected, rtol=0, atol=1e-9)


# --- the differential equation -------------------------------------------------------------------------------------


def noise_to_signal(q: GaussianProcess, t: int) -> float:
    """r_t = √((1-α_t)/α_t)."""
    a = q.alpha(t).item()
    return math.sqrt((1 - a) / a)


@pytest.mark.equation("ode-step")
@pytest.mark.parametrize("t, s", [(1000, 999), (1000, 300), (500, 20), (20, 3), (2, 1), (700, 0)])
def test_a_step_of_ddim_is_a_step_of_euler(process, t, s):
    denoiser, x_t = mixture(process, MEANS, 0.1), randn(3, 2, 2)
    step = Generalized.with_eta(None, 0.0, [1000], False).step(denoiser, x_t, t, s, no_noise, ())
    root_t, root_s = process.alpha(t).sqrt(), process.alpha(s).sqrt()
    moved = (noise_to_signal(process, s) - noise_to_signal(process, t)) * denoiser(x_t, t).eps
    torch.testing.assert_close(step.x_s / root_s, x_t / root_t + moved, rtol=1e-9, atol=1e-9)


def flow(q: GaussianProcess, t: int, start: torch.Tensor, m: float, v: float) -> torch.Tensor:
    """x/√α at t on the exact way of data N(m, v) that passes `start` at T: (x/√α - m)/√(v + r²) does not change."""
    return m + (start - m) * math.sqrt((v + noise_to_signal(q, t) ** 2) / (v + noise_to_signal(q, q.T) ** 2))


@pytest.mark.equation("ode")
@pytest.mark.parametrize("t", [1, 20, 500, 1000])
def test_the_network_is_the_slope_of_the_flow(process, t):
    m, v, r, start = 0.7, 0.3, noise_to_signal(process, t), 40 * randn(5, 1)
    now = flow(process, t, start, m, v)
    eps = gaussian(process, torch.full((1,), m, dtype=torch.float64), v)(now / math.sqrt(r**2 + 1), t).eps
    torch.testing.assert_close(eps, (now - m) * r / (v + r**2), rtol=0, atol=1e-9)  # d/dr of the flow


@pytest.mark.equation("ode")
def test_with_more_steps_ddim_comes_to_the_flow_as_1_over_S():
    q, m, v = GaussianProcess(Linear(4096)), 0.7, 0.3
    denoiser, x_T = gaussian(q, torch.full((1,), m, dtype=torch.float64), v), randn(5, 1)
    expected, errors = flow(q, 0, x_T / q.alpha(q.T).sqrt(), m, v), []
    for S in (64, 128, 256, 512, 1024):
        tau = [(i + 1) * q.T // S for i in range(S)]
        errors.append(
            (Generalized.with_eta(None, 0.0, tau, False, limit=None)(denoiser, x_T, no_noise) - expected).abs().max().item()
        )
    assert all(0.8 < math.log2(a / b) < 1.2 for a, b in pairwise(errors)), errors
