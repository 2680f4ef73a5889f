"""Why a sampler may visit some of the T steps alone: DDIM section 4.2 and appendix C.1, without a drawn number."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import CountingNoise, no_noise, point_mass, randn
from test_theorem import SCHEDULES, X_0, affine, at_two_eps, drawn, expected_log, f, q_mean, sigmas

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.joint import joint
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.schedules.base import NoiseSchedule


def along(q: GaussianProcess, tau: list[int]) -> GaussianProcess:
    """The process that knows the steps of τ alone: its step i is step τ_i."""
    return GaussianProcess(NoiseSchedule(q.schedule.alpha[[0, *tau]]))


@pytest.mark.equation("sub-sequence")
@pytest.mark.parametrize("tau", [[1000], [10, 1000], [1, 3, 20, 500, 970, 1000]], ids=str)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_sub_sequence_of_a_schedule_is_a_schedule(process, tau, eta):
    """The sampler along τ, told x_0, draws the joint of the process that has no other steps; every x_t has its marginal."""
    S, x_0 = len(tau), randn(1)
    draws = torch.eye(1 + S, dtype=torch.float64)[1:, :, None]
    rows = x_0.expand(1 + S, 1)
    expected = [x for _, x in joint(along(process, tau), rows, Eta(eta), CountingNoise((1 + S, 1), draws))]
    walk = Generalized.with_eta(None, eta, tau, False, limit=None).trajectory(
        point_mass(process, x_0), expected[0], CountingNoise((1 + S, 1), draws[1:]) if eta > 0 else no_noise
    )
    states = [expected[0], *(step.x_s for step in walk)]
    for t, found, by_joint in zip([*tau[::-1], 0], states, [*expected, rows], strict=True):
        torch.testing.assert_close(found, by_joint, rtol=0, atol=1e-10)
        a = process.alpha(t).item()
        assert found[0].item() == pytest.approx(math.sqrt(a) * x_0.item(), abs=1e-10)
        assert (found[1:] - found[0]).square().sum().item() == pytest.approx(1 - a, abs=1e-10)


def J_along(denoiser: Denoiser, tau: list[int], eta: float) -> float:
    """DDIM eq. 58 from the densities of eq. 52 to 57: a chain along τ, every other x_t hung on x_0 by itself."""
    q = denoiser.process
    a, sub, spread = q.schedule.alpha.tolist(), along(q, tau), sigmas(along(q, tau), eta)
    x = {([0, *tau])[i]: rows for i, rows in drawn(sub, eta).items()}
    T = tau[-1]
    total = expected_log(x[T], math.sqrt(a[T]) * x[0], math.sqrt(1 - a[T])) - expected_log(x[T], 0 * x[T], 1.0)
    for i, (s, t) in enumerate(zip([0, *tau[:-1]], tau, strict=True), 1):
        if s > 0:
            total += expected_log(x[s], q_mean(a, t, s, spread[i], x[0], x[t]), spread[i])
        image = f(denoiser, t, x[t])
        total -= expected_log(x[s], q_mean(a, t, s, spread[i], image, x[t]) if s > 0 else image, spread[i])
    for t in set(range(1, q.T + 1)) - set(tau):
        x_0 = torch.full((2, 1), X_0, dtype=torch.float64)
        x_t = math.sqrt(a[t]) * x_0 + math.sqrt(1 - a[t]) * torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        total += expected_log(x_t, math.sqrt(a[t]) * x_0, math.sqrt(1 - a[t]))
        total -= expected_log(x_0, f(denoiser, t, x_t), aside(q, t))
    return total


def aside(q: GaussianProcess, t: int) -> float:
    """A σ_t of p_θ(x_0 | x_t) for the steps outside τ; any will do."""
    return 0.3 + 0.1 * t


def gamma_along(q: GaussianProcess, tau: list[int], eta: float) -> dict[int, float]:
    """t → γ_t: that of the pair (τ_i, τ_{i-1}) on the chain, that of a likelihood where x_0 is what is predicted."""
    a, spread = q.schedule.alpha.tolist(), sigmas(along(q, tau), eta)
    gamma = {t: (1 - a[t]) / (2 * aside(q, t) ** 2 * a[t]) for t in range(1, q.T + 1)}
    gamma[tau[0]] = (1 - a[tau[0]]) / (2 * spread[1] ** 2 * a[tau[0]])
    for i, (s, t) in enumerate(pairwise(tau), 2):
        room = math.sqrt(max(1 - a[s] - spread[i] ** 2, 0))
        gamma[t] = (math.sqrt(a[s] * (1 - a[t]) / a[t]) - room) ** 2 / (2 * spread[i] ** 2)
    return gamma


@pytest.mark.equation("sub-sequence bound")
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("tau", [[2, 5, 7], [1, 2, 3, 4, 5, 6, 7], [6, 7]], ids=str)
def test_the_bound_along_tau_is_l_gamma_too(schedule, eta, tau):
    q = GaussianProcess(schedule)
    gamma, x_0, gaps, losses = gamma_along(q, tau, eta), torch.full((2, 1), X_0, dtype=torch.float64), [], []
    assert list(gamma) == list(range(1, 8)) and all(weight > 0 for weight in gamma.values())
    for denoiser in (affine(q, seed) for seed in range(4)):

        def error(eps, t, denoiser=denoiser):
            return (denoiser.output(q.q_sample(x_0, t, eps), t) - eps).square()

        losses.append(sum(weight * at_two_eps(lambda eps, t=t: error(eps, t)) for t, weight in gamma.items()))
        gaps.append(J_along(denoiser, tau, eta) - losses[-1])
    assert gaps == pytest.approx([gaps[0]] * 4, rel=1e-8, abs=1e-8) and len({round(loss, 3) for loss in losses}) == 4
