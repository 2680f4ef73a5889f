import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import randn, randomized
from torch import nn

from anysigma.networks.layers import Attention, Layers, TimeEmbedding, groups_for, timestep_embedding
from anysigma.networks.mlp import MLP
from anysigma.networks.unet import UNet, halvings

CONF = Path(__file__).parents[2] / "conf"
SHAPES = [(1, 8, 8), (3, 32, 32), (2, 1, 1), (1, 28, 28), (3, 24, 40), (4, 7, 9)]


def reference(t, dim: int) -> np.ndarray:
    """The sinusoids in float64, written from Vaswani et al."""
    half = dim // 2
    angle = np.asarray(t, dtype=np.float64)[:, None] * 10_000 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def paper(shape=(3, 32, 32)) -> UNet:
    """What model=unet_ddpm builds."""
    options = yaml.safe_load((CONF / "model/unet_ddpm.yaml").read_text())
    return UNet(shape, **{key: value for key, value in options.items() if key not in ("_target_", "shape")})


def layers(channels: int) -> Layers:
    """The layers of a network of `channels` and 16 numbers of time, with the defaults."""
    return Layers(16, 0.0, groups_for(channels), 1e-5, None, "symmetric")


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_network_of_the_paper_has_its_size():
    with torch.device("meta"):
        assert parameters(paper()) == 35_746_307


def test_attention_of_the_paper_stands_at_16_and_in_the_middle():
    heights = []
    with torch.device("meta"):
        network = paper()
        for part in network.modules():
            if isinstance(part, Attention):
                part.register_forward_pre_hook(lambda _, inputs: heights.append(inputs[0].shape[-2]))
        network(torch.empty(1, 3, 32, 32), torch.empty(1, dtype=torch.long))
    assert heights == [16, 16, 4, 16, 16, 16]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_will_do(shape):
    network = randomized(UNet(shape, channels=24)).eval()
    x = randn(2, *shape, dtype=torch.float32)
    with torch.no_grad():
        output = network(x, torch.tensor([1, 1000]))
    assert output.shape == x.shape and output.isfinite().all() and output.std() > 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_fresh_network_returns_zero(shape):
    x = randn(2, *shape, dtype=torch.float32)
    with torch.no_grad():
        assert not UNet(shape)(x, torch.tensor([1, 1000])).any()


@pytest.mark.parametrize(
    "H, W, most, expected",
    [
        (32, 32, 3, 3),
        (32, 32, 2, 2),
        (32, 32, 0, 0),
        (8, 8, 3, 1),
        (6, 6, 3, 0),
        (4, 4, 3, 0),
        (1, 1, 3, 0),
        (28, 28, 3, 2),
        (24, 40, 3, 2),
        (7, 9, 3, 0),
        (8, 9, 3, 0),
        (64, 8, 3, 1),
        (12, 32, 3, 1),
        (128, 128, 3, 3),
    ],
)
def test_a_size_is_halved_while_it_is_even_and_at_least_8(H, W, most, expected):
    assert halvings(H, W, most) == halvings(W, H, most) == expected


def test_only_the_multipliers_that_cannot_be_used_are_dropped():
    with torch.device("meta"):
        narrow = UNet((1, 28, 28), 48, (1, 2, 2), attention=(7,), fit=False)
        assert parameters(UNet((1, 28, 28), 48, attention=(7,))) == parameters(narrow)


@pytest.mark.parametrize("shape", [(3, 28, 28), (3, 32, 20), (3, 20, 32), (1, 7, 9)], ids=str)
def test_a_shape_that_the_strides_do_not_divide_is_refused(shape):
    with pytest.raises(ValueError, match=f"{shape[1]}x{shape[2]} must be divisible by 8"), torch.device("meta"):
        UNet(shape, fit=False)


@pytest.mark.parametrize("dim", [24, 48, 128])
def test_embeddings_are_the_sinusoids(dim):
    t = torch.tensor([1, 2, 500, 998, 999, 1000])
    expected = torch.from_numpy(reference(t.numpy(), dim))
    torch.testing.assert_close(timestep_embedding(t, dim).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dim", [-2, 0, 2, 3, 5, 9])
def test_an_embedding_too_narrow_or_odd_is_refused(dim):
    with pytest.raises(ValueError, match=f"even width of at least 4, got {dim}"):
        timestep_embedding(torch.tensor([1]), dim)


def test_the_narrowest_embedding_and_its_device():
    assert timestep_embedding(torch.tensor([0, 7]), 4).shape == (2, 4)
    assert timestep_embedding(torch.empty(2, dtype=torch.long, device="meta"), 8).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_perceptron_takes_what_it_is_given_in_its_own_dtype(dtype):
    x = randn(2, 1, 2, 1, dtype=torch.float32)
    assert MLP((1, 2, 1), width=8).to(dtype)(x, torch.tensor([1, 2])).dtype == dtype


def seen_by_mlp(model: nn.Module, run) -> torch.Tensor:
    """The sinusoids that enter the perceptron."""
    seen = []
    handle = model.time.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run()
    handle.remove()
    return seen[0]


def test_neighbouring_t_stay_apart_under_autocast():
    model, t = UNet((1, 8, 8), channels=48), torch.tensor([998, 999])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedding = seen_by_mlp(model, lambda: model(torch.zeros(2, 1, 8, 8), t))
    torch.testing.assert_close(embedding.double(), torch.from_numpy(reference([997, 998], 48)), rtol=0, atol=1e-3)
    assert (embedding[0] - embedding[1]).abs().max() > 0.1


def test_neighbouring_t_stay_apart_in_a_bfloat16_model():
    model, t = UNet((1, 8, 8), channels=48).bfloat16(), torch.tensor([998, 999])
    with torch.no_grad():
        embedding = seen_by_mlp(model, lambda: model(torch.zeros(2, 1, 8, 8), t))
        time = model.time(t)
    assert embedding.dtype == torch.bfloat16
    # Half a unit in the last place of bfloat16 below 1 is 2⁻⁹; an angle rounded to bfloat16 would be off by up to 2.
    torch.testing.assert_close(embedding.double(), torch.from_numpy(reference([997, 998], 48)), rtol=0, atol=2**-9 + 1e-3)
    assert (embedding[0] - embedding[1]).abs().max() > 0.1 and not torch.equal(time[0], time[1])


def test_the_perceptron_of_the_embedding_keeps_its_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert TimeEmbedding(24, 96).to(dtype)(torch.tensor([1])).dtype == dtype


@pytest.mark.parametrize("channels", [8, 16, 24, 32, 40, 48, 64, 128], ids=str)
def test_a_block_hears_the_time_at_every_width(channels):
    block = randomized(layers(channels).residual(channels, channels)).double()
    x = randn(1, channels, 4, 4)
    with torch.no_grad():
        difference = block(x, randn(1, 16, seed=1)) - block(x, randn(1, 16, seed=2))
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("channels", [8, 16, 24, 48], ids=str)
def test_the_network_hears_the_time_at_every_width(channels):
    network = randomized(UNet((1, 8, 8), channels=channels)).double().eval()
    x = randn(1, 1, 8, 8)
    with torch.no_grad():
        difference = network(x, torch.tensor([1])) - network(x, torch.tensor([900]))
    assert difference.abs().max() > 1e-3


@pytest.mark.parametrize("channels", [1, 8, 24, 40, 48, 128, 256])
def test_groups_suit_the_channels(channels):
    groups = groups_for(channels)
    assert channels % groups == 0 and groups <= 32 and (4 * groups <= channels or groups == 1)
    assert channels < 128 or groups == 32


def test_there_are_never_more_than_32_groups():
    assert groups_for(132) == 22 and groups_for(1024) == 32  # 33 divides 132, in groups of 4


def test_evaluation_is_deterministic_and_training_drops():
    network = randomized(UNet((1, 8, 8), channels=24, dropout=0.5))
    x, t = randn(2, 1, 8, 8, dtype=torch.float32), torch.tensor([3, 700])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(network.train()(x, t), network(x, t))
        assert torch.equal(network.eval()(x, t), network(x, t))


def test_an_image_does_not_depend_on_its_neighbours():
    network = randomized(UNet((1, 8, 8), channels=24)).double().eval()
    x, t = randn(3, 1, 8, 8), torch.tensor([3, 700, 1000])
    with torch.no_grad():
        torch.testing.assert_close(network(x[1:2], t[1:2]), network(x, t)[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("build", [UNet, lambda shape: UNet(shape, 24, (1, 2), 2, (16,))], ids=["unet", "levels_given"])
def test_gradients_reach_every_parameter(build):
    network = randomized(build((2, 16, 16)))
    network(randn(2, 2, 16, 16, dtype=torch.float32), torch.tensor([3, 700])).square().mean().backward()
    unreached = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


def test_a_fresh_network_can_leave_zero():
    # Zero-initialised twice in a row, a network would have no gradient at all and never start.
    network = UNet((1, 8, 8), channels=24)
    (network(randn(2, 1, 8, 8, dtype=torch.float32), torch.tensor([3, 700])) - 1).square().mean().backward()
    assert network.last[-1].weight.grad.abs().max() > 0


def test_attention_is_softmax_over_all_pixels():
    layer, x = randomized(layers(8).attention(8)).double(), randn(2, 8, 3, 5)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # each [B, C, H·W]
        weight = (torch.einsum("bci,bcj->bij", q, k) / math.sqrt(8)).softmax(2)
        h = torch.einsum("bij,bcj->bci", weight, v).reshape(x.shape)
        torch.testing.assert_close(layer(x), x + layer.out(h), rtol=0, atol=1e-12)


def test_a_fresh_block_and_a_fresh_attention_are_the_identity():
    x = randn(2, 24, 4, 4, dtype=torch.float32)
    assert torch.equal(layers(24).residual(24, 24)(x, randn(2, 16, dtype=torch.float32)), x)
    assert torch.equal(layers(24).attention(24)(x), x)
