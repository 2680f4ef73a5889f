import pytest
import torch
from conftest import gaussian, mixture, point_mass, randn, randomized

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.objective import LGamma, Simple
from anysigma.diffusion.parameterizations import Eps
from anysigma.networks.unet import UNet


def test_simple_is_the_plain_mean_squared_error_of_each_image(process):
    network = randomized(UNet((2, 8, 8), channels=24)).eval()
    x_0, eps = randn(5, 2, 8, 8, dtype=torch.float32), randn(5, 2, 8, 8, seed=1, dtype=torch.float32)
    t = torch.tensor([1, 10, 500, 999, 1000])
    alpha = process.schedule.alpha[t].reshape(5, 1, 1, 1)
    with torch.no_grad():
        loss = LGamma(Simple())(Denoiser(network, process, Eps()), x_0, t, eps)
        output = network((alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps).float(), t)
    expected = torch.stack([((o - e) ** 2).mean() for o, e in zip(output, eps, strict=True)])
    assert loss.shape == (5,)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("v", [0.25, 2.0])
@pytest.mark.parametrize("t", [1, 100, 500, 1000])
def test_the_exact_denoiser_of_gaussian_data_reaches_the_floor(process, v, t):
    # Var(eps | x_t) = α_t v/(α_t v + 1-α_t): the loss that no network can go below.
    B, d = 20_000, 4
    m = randn(1, 2, 2, seed=3)
    x_0, eps = m + v**0.5 * randn(B, 1, 2, 2, seed=t), randn(B, 1, 2, 2, seed=t + 1)
    loss = LGamma(Simple())(gaussian(process, m, v), x_0, torch.full((B,), t), eps)
    a = process.alpha(t).item()
    floor = a * v / (a * v + 1 - a)
    error = (loss.std() / B**0.5).item()
    # The squared error of d pixels is χ²_d: a standard error that is any wider would let a wrong floor pass.
    assert error == pytest.approx(floor * (2 / (d * B)) ** 0.5, rel=0.05)
    assert abs(loss.mean().item() - floor) < 4 * error


def test_the_exact_denoiser_of_a_point_makes_no_error(process):
    x = randn(1, 2, 2)
    t = torch.tensor([1, 500, 1000])
    loss = LGamma(Simple())(point_mass(process, x), x.expand(3, -1, -1, -1), t, randn(3, 1, 2, 2, seed=1))
    assert loss.max() < 1e-20


def test_the_exact_denoiser_of_a_mixture_beats_that_of_its_moments(process):
    # Two points at ±1: the Gaussian of the same mean and variance is the best affine answer, the mixture the best of all.
    B, t = 20_000, torch.full((20_000,), 250)
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    x_0, eps = randn(B, 1, 1, 1).sign(), randn(B, 1, 1, 1, seed=1)
    objective = LGamma(Simple())
    exact, affine = (
        objective(d, x_0, t, eps) for d in (mixture(process, means, 0.0), gaussian(process, means.mean(0), 1.0))
    )
    difference = affine - exact
    assert difference.mean() > 5 * difference.std() / B**0.5


def test_gamma_multiplies_the_error_of_its_own_row(process):
    class Double:
        def weight(self, q, t, parameterization):
            return 2.0 * t

    denoiser, x_0, eps = gaussian(process, randn(1, 2, 2), 1.0), randn(3, 1, 2, 2, seed=1), randn(3, 1, 2, 2, seed=2)
    t = torch.tensor([1, 5, 1000])
    expected = LGamma(Simple())(denoiser, x_0, t, eps) * torch.tensor([2.0, 10, 2000])
    torch.testing.assert_close(LGamma(Double())(denoiser, x_0, t, eps), expected, rtol=1e-12, atol=0)


def uniforms(B):
    return torch.rand(B, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_t_is_uniform_on_1_to_T():
    B, T = 50_000, 10
    t, weight = LGamma(Simple()).draw_t(uniforms(B), T)
    counts = torch.bincount(t, minlength=T + 1)
    assert t.dtype == torch.long and len(counts) == T + 1 and counts[0] == 0
    # Binomial standard deviation of each count, five of them.
    assert (counts[1:] - B / T).abs().max() < 5 * (B / T * (1 - 1 / T)) ** 0.5
    assert torch.equal(weight, torch.ones(B))


def test_t_is_1_where_T_is_1_and_is_a_function_of_u():
    draw = LGamma(Simple()).draw_t
    assert torch.equal(draw(uniforms(5), 1)[0], torch.ones(5, dtype=torch.long))
    u = torch.tensor([0, 0.0999999, 0.1, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(u, 10)[0].tolist() == [1, 1, 2, 6, 10]
