import math

import numpy as np
import pytest
import torch

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.schedules.base import NoiseSchedule, alpha_from_beta
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.networks.unet import UNet

KINDS = [Linear, Cosine]


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [1, 2, 10, 37, 1000, 4000])
def test_a_table_starts_at_one_and_falls_to_above_zero(kind, T):
    alpha = kind(T).alpha
    assert alpha.dtype == torch.float64 and alpha.shape == (T + 1,) and kind(T).T == T
    assert alpha[0] == 1 and (alpha.diff() < 0).all() and alpha[-1] > 0


def test_linear_is_the_product_of_one_minus_beta():
    beta, product, expected = np.linspace(1e-4, 0.02, 1000), 1.0, [1.0]
    for b in beta:
        product *= 1 - float(b)
        expected.append(product)
    torch.testing.assert_close(Linear(1000).alpha, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("t, expected, rtol", [(1, 0.9999, 1e-14), (1000, 4.0358e-5, 1e-4)])
def test_linear_has_the_values_of_the_paper(t, expected, rtol):
    assert Linear(1000)(t).item() == pytest.approx(expected, rel=rtol)


def test_linear_in_the_middle_agrees_with_a_sum_of_logarithms():
    # Another order of operations than cumprod: an index shifted by one would show as a factor 1-β_500 ≈ 0.99.
    logs = sum(math.log1p(-(1e-4 + (0.02 - 1e-4) * i / 999)) for i in range(500))
    assert Linear(1000)(500).item() == pytest.approx(math.exp(logs), rel=1e-12)


def test_linear_with_few_steps_scales_beta_and_caps_it():
    alpha = Linear(10).alpha
    expected = [min(100 * (1e-4 + (0.02 - 1e-4) * i / 9), 0.999) for i in range(10)]
    assert expected.count(0.999) == 5  # both the scaling and the cap are at work
    torch.testing.assert_close(1 - alpha[1:] / alpha[:-1], vector(*expected), rtol=1e-12, atol=0)


@pytest.mark.parametrize("T", [100, 300, 4000])
def test_linear_ends_at_nearly_the_same_signal_for_every_length(T):
    assert abs(math.log(Linear(T)(T).item() / Linear(1000)(1000).item())) < 1.5


@pytest.mark.parametrize("T", [10, 1000])
def test_cosine_is_the_formula_below_the_cap(T):
    f = [math.cos((t / T + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(T)]
    torch.testing.assert_close(Cosine(T).alpha[:T], vector(*f) / f[0], rtol=1e-10, atol=0)


def test_cosine_caps_beta_in_its_last_step():
    alpha = Cosine(1000).alpha
    assert (alpha[-1] / alpha[-2]).item() == pytest.approx(1 - 0.999, rel=1e-9)


def test_alpha_from_beta_is_the_cumulative_product():
    torch.testing.assert_close(alpha_from_beta(vector(0.5, 0.2, 0.1)), vector(1, 0.5, 0.4, 0.36), rtol=1e-15, atol=0)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_casting_a_model_leaves_the_table_alone(cast):
    denoiser = cast(Denoiser(UNet((1, 8, 8)), GaussianProcess(Linear()), Eps()))
    assert next(denoiser.parameters()).dtype != torch.float64
    assert denoiser.process.schedule.alpha.dtype == torch.float64
    assert denoiser.process.alpha(torch.tensor([1, 1000])).dtype == torch.float64
    assert torch.equal(denoiser.process.schedule.alpha, Linear().alpha)


def test_an_int_and_a_tensor_read_the_same_values():
    schedule, t = Linear(37), torch.arange(38)
    assert torch.equal(schedule(t), schedule.alpha)
    assert torch.equal(schedule(t), torch.stack([schedule(int(i)) for i in t]))
    assert schedule(3).shape == () and schedule(torch.tensor([3])).shape == (1,)


@pytest.mark.parametrize(
    "alpha",
    [
        vector(1, 0.5, 0.5),
        vector(1, 0.5, 0.6),
        vector(1, 0.5, -0.1),
        vector(1, 0.0, -0.1),
        vector(1, 0.5, math.nan),
        vector(0.9, 0.5),
        vector(1.1, 0.5),
        vector(1),
        vector(),
        vector(1, 0.5)[None],
    ],
    ids=str,
)
def test_a_table_that_is_none_is_refused(alpha):
    with pytest.raises(ValueError, match="α"):
        NoiseSchedule(alpha)


def test_only_the_last_value_may_be_zero():
    assert NoiseSchedule(vector(1, 0.5, 0)).alpha[-1] == 0
    with pytest.raises(ValueError, match="decreasing and positive"):
        NoiseSchedule(vector(1, 0, 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("T", [0, -1])
def test_a_process_without_steps_is_refused(kind, T):
    with pytest.raises(ValueError, match=f"T={T}"):
        kind(T)


@pytest.mark.parametrize("start, end", [(0, 0.02), (0.02, 1e-4), (1e-4, 1)])
def test_linear_refuses_betas_outside_their_range(start, end):
    with pytest.raises(ValueError, match="beta_start"):
        Linear(1000, start, end)


@pytest.mark.parametrize("s, beta_max", [(-0.1, 0.999), (0.008, 0), (0.008, 1)])
def test_cosine_refuses_numbers_outside_their_range(s, beta_max):
    with pytest.raises(ValueError, match="cosine"):
        Cosine(1000, s, beta_max)
