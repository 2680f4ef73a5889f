import numpy as np
import pytest
import torch
from conftest import point_mass, randn, randomized

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.noise import LOW, Draws, ImageNoise, philox, stream_seed
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.networks.unet import UNet

# Fewer numbers than one counter gives, a rest, and enough for vectors and threads.
SHAPES = [(2, 1, 1), (3, 5, 7), (3, 32, 32)]
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


def test_image_k_is_row_k_of_the_draws_of_its_seed():
    rows = torch.tensor([17])
    expected = torch.cat([Draws(3, "image").normal(rows, SHAPE, draw) for draw in range(4)])
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


# --- Philox --------------------------------------------------------------------------------------------------------

# Random123's known answers for Philox 4x32-10: counter, key, words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((LOW,) * 4, (LOW,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (*PI, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_the_published_answers(counter, key, words):
    assert tuple(int(word) for word in philox([torch.tensor([c]) for c in counter], key)) == words


def by_hand(counter, key):
    """Philox 4x32-10 in Python's integers, as the paper writes it."""
    (a, b, c, d), (k_0, k_1) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k_0, q % 2**32, (p >> 32) ^ d ^ k_1, p % 2**32
        k_0, k_1 = (k_0 + 0x9E3779B9) % 2**32, (k_1 + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize("row", [0, 1, LOW, LOW + 1, 2**40 + 3, 2**62])
@pytest.mark.parametrize("draw", [0, 5, 999])
def test_a_rows_words_are_those_of_its_own_counter(row, draw):
    """Key (seed, what for), counter (number, row, draw); no two counters are one, also beyond 32 bits of rows."""
    seed = stream_seed(7, "eps")
    words = Draws(7, "eps").words(torch.tensor([3, row]), 3, draw)
    for number in range(3):
        expected = by_hand((number, row & LOW, draw, row >> 32), (seed & LOW, seed >> 32))
        assert tuple(int(word[1, number]) for word in words) == expected


def test_the_counter_that_is_asked_is_left_as_it_was():
    counter = [torch.arange(5) + i for i in range(4)]
    philox(counter, (1, 2))
    assert all(torch.equal(c, torch.arange(5) + i) for i, c in enumerate(counter))


def test_uniforms_are_uniform_on_0_to_1_and_1_is_not_reached(monkeypatch):
    u = Draws(0, "t").uniform(torch.arange(100_000))
    assert u.dtype == torch.float64 and u.min() >= 0 and u.max() < 1
    gap = (u.sort().values - torch.arange(100_000) / 100_000).abs().max()
    assert gap < 1.95 / 100_000**0.5  # Kolmogorov: 0.1 %
    highest = [torch.full((1, 1), LOW)] * 4
    monkeypatch.setattr(Draws, "words", lambda *_: highest)
    assert Draws(0).uniform(torch.tensor([0])).item() == 1 - 2.0**-53
    assert Draws(0).uniform(Elsewhere(torch.tensor([0]))).item() == 1 - 2.0**-24  # float32, where there is no float64


class Elsewhere:
    """Rows that say they lie on an MPS device."""

    device = torch.device("mps")

    def __init__(self, rows):
        self.rows = rows


@pytest.mark.parametrize("word", [0, 1, LOW // 2, LOW])
def test_no_word_gives_an_infinite_normal(word, monkeypatch):
    monkeypatch.setattr(Draws, "words", lambda *_: [torch.full((1, 1), word)] * 4)
    x = Draws(0).normal(torch.tensor([0]), (4,))
    assert x.isfinite().all() and x.abs().max() < 6.67  # √(-2 ln 2⁻³²) = 6.66


def test_normals_are_normal_in_the_tails_too():
    x = Draws(0, "eps").normal(torch.arange(1000), (1000,)).flatten().double().sort().values
    gap = (torch.special.ndtr(x) - torch.arange(1_000_000) / 1_000_000).abs().max()
    assert gap < 1.95 / 1000
    for z in (3.0, 4.0):
        expected = 2e6 * torch.special.ndtr(torch.tensor(-z, dtype=torch.float64)).item()
        assert abs((x.abs() > z).sum().item() - expected) < 4 * expected**0.5


def test_normals_beside_each_other_are_uncorrelated():
    """Cosine and sine of one angle stand in one row, as do neighbouring counters; squares would show a shared radius."""
    x = Draws(0, "eps").normal(torch.arange(20_000), (24,)).double()
    for y in (x, x.square() - 1):
        assert torch.corrcoef(y.T).fill_diagonal_(0).abs().max() < 4.5 / 20_000**0.5


def test_other_keys_and_other_draws_are_unrelated():
    rows = torch.arange(3000)
    keys = [(0, "t"), (1, "t"), (0, "eps"), (0, "flips"), (0, "image"), (0,), ("t", 0)]
    drawn = [Draws(*key).uniform(rows) for key in keys] + [Draws(0, "t").uniform(rows, draw) for draw in (1, 2)]
    drawn += [drawn[0].roll(1)]  # neighbouring rows
    assert torch.corrcoef(torch.stack(drawn)).fill_diagonal_(0).abs().max() < 4.5 / 3000**0.5


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_bit_for_bit_in_any_batch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape in [(1, 1, 1), (2, 1, 1), (3, 5, 7), (1, 13, 17), (3, 32, 32)]:
            whole = Draws(0, "eps").normal(torch.arange(100), shape)
            for first, size in [(0, 1), (1, 3), (17, 16), (31, 33), (99, 1)]:
                rows = torch.arange(first, first + size)
                assert torch.equal(Draws(0, "eps").normal(rows, shape), whole[rows]), (shape, first, size)
    finally:
        torch.set_num_threads(before)


# --- keys ----------------------------------------------------------------------------------------------------------


def test_the_seed_of_a_stream_is_fixed_for_ever():
    # A literal: were the rule to change, every published image would silently become another.
    assert stream_seed(3, 1, 4) == 8860860081527638639


def test_seeds_tell_keys_apart():
    keys = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (11,), (1, 1), (-1,), (2**70,), *((0, k) for k in range(2, 5000))]
    keys += [("0",), ("t",), ("t", 0), (0, "t"), (0, "eps")]
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
