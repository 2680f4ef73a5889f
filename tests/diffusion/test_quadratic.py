import numpy as np
import pytest
from conftest import no_noise, point_mass, randn

from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Quadratic


def test_ten_steps_are_the_official_list():
    assert Quadratic()(10, 1000) == [1, 10, 40, 89, 159, 247, 356, 484, 633, 801]


@pytest.mark.parametrize("S, distinct", [(10, 10), (20, 20), (50, 49), (100, 96)])
def test_repeats_are_kept(S, distinct):
    tau = Quadratic()(S, 1000)
    assert len(tau) == S and len(set(tau)) == distinct
    assert (tau[0], tau[-1]) == (1, 801) and tau == sorted(tau)


def official(S, T):
    """The grid as DDIM's code makes it, 1 + int(s) where that counts t from 0."""
    return [1 + int(s) for s in np.linspace(0, np.sqrt(0.8 * T), S) ** 2]


@pytest.mark.parametrize("T", [1, 2, 4, 5, 10, 37, 100, 125, 500, 720, 1000, 1280, 4000])
def test_it_is_the_official_grid_for_every_number_of_steps(T):
    different = [S for S in range(1, min(T, 1000) + 1) if Quadratic()(S, T) != official(S, T)]
    assert different == []


def test_whole_numbers_would_give_another_grid():
    """x_i² = 4T/5 · i²/(S-1)² without rounding: the comparison above can tell the two apart."""
    exact = {S: [1 + 4000 * i * i // (5 * (S - 1) ** 2) for i in range(S)] for S in range(2, 1001)}
    assert [S for S in exact if exact[S] != official(S, 1000)]


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 10, 1000])
def test_it_stays_within_1_to_T(T):
    for S in range(1, T + 1):
        tau = Quadratic()(S, T)
        assert len(tau) == S and tau[0] >= 1 and tau[-1] <= T


@pytest.mark.parametrize("steps", [None, 37])
def test_all_steps_are_1_to_T(steps):
    pairs = Generalized.with_eta(steps, 0.0, Quadratic(), True).pairs(37)
    assert pairs == [(t, t - 1) for t in range(37, 0, -1)]


def test_a_sampler_walks_over_the_repeats(process):
    chosen, x = Generalized.with_eta(100, 0.0, Quadratic(), False), randn(1, 2, 2)
    assert len(chosen.pairs(1000)) == 100
    steps = list(chosen.trajectory(point_mass(process, x), randn(2, 1, 2, 2, seed=1), no_noise))
    assert len(steps) == 100 and (steps[-1].x_s - x).abs().max() < 1e-10
