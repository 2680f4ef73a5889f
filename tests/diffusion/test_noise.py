import numpy as np
import pytest
import torch
from conftest import point_mass, randn, randomized

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.noise import ImageNoise, stream, stream_seed
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.networks.unet import UNet

# More than 16 values and fewer: torch fills short and long tensors by different code.
SHAPES = [(2, 1, 1), (3, 5, 7)]
SHAPE = (1, 8, 8)


def draws(ks, shape, seed: int = 0, n: int = 4) -> dict[int, torch.Tensor]:
    """k → x_T and the noises after it, `[n, *shape]`."""
    noise = ImageNoise(ks, shape, seed)
    return dict(zip(ks, torch.stack([noise() for _ in range(n)], 1), strict=True))


@pytest.fixture
def denoiser(process) -> Denoiser:
    network = randomized(UNet(SHAPE, channels=24, multipliers=(1, 2)), std=0.01).eval()
    x = randn(2, *SHAPE, dtype=torch.float32)
    # Were the network constant, any way of batching would give the same images.
    assert (network(x, torch.tensor([900, 900]))[0] - network(x, torch.tensor([900, 900]))[1]).abs().max() > 0.1
    return Denoiser(network, process, Eps())


def images(denoiser, ks, block: int, eta: float = 1.0, seed: int = 0) -> dict[int, torch.Tensor]:
    sampler = Generalized.with_eta(5, eta, Trailing(), True)
    return {
        k: x
        for numbers, x_0 in generate(denoiser, sampler, ks, SHAPE, seed=seed, block=block)
        for k, x in zip(numbers, x_0, strict=True)
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_noise_does_not_depend_on_the_batch(shape, size):
    whole = draws(range(64), shape)
    for start in range(0, 64, size):
        for k, noise in draws(range(start, min(start + size, 64)), shape).items():
            assert torch.equal(noise, whole[k]), k


@pytest.mark.parametrize("shape", SHAPES)
def test_noise_does_not_depend_on_the_order_or_the_neighbours(shape):
    whole = draws(range(64), shape)
    for k, noise in draws([63, 5, 17, 0, 31], shape).items():
        assert torch.equal(noise, whole[k]), k


def test_image_k_is_the_stream_of_seed_and_k():
    generator = stream(3, 17)
    expected = torch.stack([torch.empty(SHAPE).normal_(generator=generator) for _ in range(4)])
    assert torch.equal(draws([17], SHAPE, seed=3)[17], expected)


def test_every_image_every_seed_and_every_draw_is_another():
    everything = [d for seed in (0, 1) for noise in draws(range(20), SHAPE, seed).values() for d in noise]
    assert len({tuple(d.flatten().tolist()) for d in everything}) == len(everything) == 160


def test_noise_is_float32_and_standard_normal():
    x = torch.cat([*draws(range(100), (3, 16, 16)).values()])
    n = x.numel()
    assert x.dtype == torch.float32
    x = x.double()
    # Standard errors of the first four moments of n draws: 1, √2, √15, √96 over √n.
    for power, moment, spread in [(1, 0, 1), (2, 1, 2**0.5), (3, 0, 15**0.5), (4, 3, 96**0.5)]:
        assert abs(x.pow(power).mean().item() - moment) < 4 * spread / n**0.5, power


def test_images_and_draws_are_uncorrelated():
    x = torch.stack([*draws(range(30), (16, 32)).values()]).flatten(0, 1).flatten(1).double()
    correlation = x @ x.T / x.shape[1]
    correlation.fill_diagonal_(0)
    # 120·119/2 correlations of 512 values each: the largest of so many stays below 5.5 standard errors.
    assert correlation.abs().max() < 5.5 / 512**0.5


def test_the_seed_of_a_stream_is_fixed_for_ever():
    # A literal: were the rule to change, every published image would silently become another.
    assert stream_seed(3, 1, 4) == 8860860081527638639


def test_seeds_tell_keys_apart():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (11,), (1, 1), (-1,), (2**70,), *((0, k) for k in range(2, 5000))]
    seeds = [stream_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


def test_an_integer_of_numpy_names_the_same_stream():
    assert stream_seed(np.int64(3), 1, 4) == stream_seed(3, 1, 4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_images_agree_across_block_sizes(denoiser, eta):
    ks = range(10)
    alone, seven, many = (images(denoiser, ks, block, eta) for block in (1, 7, 64))
    for k in ks:
        assert (alone[k] - alone[(k + 1) % 10]).abs().max() > 0.1
        torch.testing.assert_close(seven[k], alone[k], rtol=0, atol=1e-4)
        torch.testing.assert_close(many[k], alone[k], rtol=0, atol=1e-4)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_within_a_block_size_the_same_image_whatever_else_is_asked_for(denoiser, block):
    some, whole = images(denoiser, [17, 3, 4], block), images(denoiser, range(20), block)
    assert set(some) == {3, 4, 17} and set(whole) == set(range(20))
    for k, x_0 in some.items():
        assert torch.equal(x_0, whole[k]), k


def test_generate_yields_numbers_in_order_each_once(denoiser):
    sampler = Generalized.with_eta(1, 0.0, Trailing(), True)
    found = [numbers for numbers, _ in generate(denoiser, sampler, [33, 5, 4, 33, 15], SHAPE, seed=0, block=4)]
    assert found == [[4, 5], [15], [33]]


def test_seeds_give_other_images(denoiser):
    assert not torch.equal(images(denoiser, [0], 1, seed=0)[0], images(denoiser, [0], 1, seed=1)[0])


def test_the_first_draw_is_x_T(denoiser):
    # With η = 0 and no clipping a point mass is reached by a known line from x_T: the images reveal the x_T they had.
    x = randn(*SHAPE, seed=5)
    exact, reached = point_mass(denoiser.process, x), {}

    class FirstStep:
        def __call__(self, denoiser, x_T, noise):
            reached[0] = x_T
            return next(Generalized.with_eta(5, 0.0, Trailing(), False).trajectory(denoiser, x_T, noise)).x_s

    (_, x_s), *_ = generate(exact, FirstStep(), [3], SHAPE, seed=0, block=1)
    x_T = draws([3], SHAPE)[3][:1]
    assert torch.equal(reached[0], x_T)
    q, T, s = denoiser.process, 1000, 800
    torch.testing.assert_close(x_s.double(), q.q_sample(x[None], s, q.eps(x_T.double(), T, x[None])), rtol=0, atol=1e-5)


def test_the_global_generator_is_left_alone(denoiser):
    before = torch.get_rng_state()
    first = images(denoiser, range(3), 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    again = images(denoiser, range(3), 2)
    assert all(torch.equal(first[k], again[k]) for k in first)
    torch.set_rng_state(before)


def test_no_gradient_graph_is_kept(denoiser):
    assert next(denoiser.parameters()).requires_grad
    assert not images(denoiser, [0], 1)[0].requires_grad
