"""Two curves of the studies, recomputed by hand: how far the predicted x_0 still is, and distortion against rate."""

import math
from itertools import pairwise

import pytest
import torch
from conftest import mixture, randn

from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.studies.base import Model
from anysigma.studies.likelihood import rate_plot
from anysigma.studies.trajectory import Trajectory

SHAPE, N, SEED = (1, 4, 4), 3, 5


def test_settling_is_the_root_mean_squared_difference_on_0_to_1(process):
    denoiser = mixture(process, 1.5 * randn(4, *SHAPE, seed=3).sign(), 0.01)  # clamped to [-1, 1] where it is compared
    sampler = Generalized.with_eta(7, 0.0, Trailing(), False, limit=None)
    study = Trajectory(samplers={"ddim": sampler}, n=N, frames=2, seed=SEED)
    plot = study.run(Model(denoiser, SHAPE, {}), sampler, None, None, None).plots["trajectory_settling"]
    x_T = ImageNoise(range(N), SHAPE, SEED)()
    steps = list(sampler.trajectory(denoiser, x_T, lambda: torch.zeros_like(x_T)))
    end = (steps[-1].x_s.clamp(-1, 1) + 1) / 2
    expected = [math.sqrt((((step.x_0.clamp(-1, 1) + 1) / 2 - end) ** 2).mean().item()) for step in steps]
    (curve,) = plot.curves
    assert curve.x == [step.t for step in steps] and curve.y == pytest.approx(expected, abs=1e-6)
    assert curve.y[0] > 0.3 and curve.y[-1] == 0


def test_rate_is_the_mean_over_the_t_of_a_stratum_of_what_all_above_cost():
    """Strata of 1, 1, 4, 10 and 1 steps: every t of one costs alike, so the sum over the t above it can be counted."""
    lengths = torch.tensor([1.0, 1, 4, 10, 1], dtype=torch.float64)
    both = {True: randn(6, 5, seed=1).abs(), False: 3 * randn(6, 5, seed=3).abs()}
    squares, L_T, edges = randn(6, 5, seed=2).square(), 0.125, [0, 1, 2, 6, 16, 17]
    curves = rate_plot(both, squares, lengths, L_T).curves
    for curve, bits in zip(curves, both.values(), strict=True):
        costs = zip(bits.mean(0).tolist(), lengths.tolist(), strict=True)
        each = [cost for cost, length in costs for _ in range(int(length))]
        above = [L_T + sum(each[i + 1 :]) for i in range(len(each))]
        assert curve.x == pytest.approx([sum(above[a:b]) / (b - a) for a, b in pairwise(edges)], rel=1e-12)
        assert curve.y == pytest.approx((127.5 * squares.mean(0).sqrt()).tolist(), rel=1e-12)
