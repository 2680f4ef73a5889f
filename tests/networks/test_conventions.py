"""Each convention of the U-Net by the identity that says what it is; what the whole then answers, test_pinned.py keeps."""

import math

import pytest
import torch
from conftest import randn, randomized
from torch import nn
from torch.nn import functional as F

from anysigma.networks.layers import Asymmetric, Attention, Symmetric, TimeEmbedding, groups_for, timestep_embedding
from anysigma.networks.mlp import MLP
from anysigma.networks.unet import UNet

SHAPE, T = (1, 8, 8), torch.tensor([1, 500])


def network(seed: int = 0, **options) -> UNet:
    """A small U-Net of seeded weights, none of them zero, in float64."""
    model = UNet(SHAPE, **{"channels": 16, "multipliers": (1, 2), "attention": (8,), **options}).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def answer(model: nn.Module, t: torch.Tensor = T, x: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model(0.1 * randn(len(t), *SHAPE) if x is None else x, t)


@pytest.mark.parametrize(
    "channels, multipliers", [(40, (1, 2, 2, 2)), (24, (1, 2, 3)), (128, (1, 2)), (16, (2, 1))], ids=str
)
@pytest.mark.parametrize("groups", [None, 1, 8])
def test_every_layer_has_the_same_groups_and_epsilon(channels, multipliers, groups):
    with torch.device("meta"):
        model = UNet((3, 32, 32), channels, multipliers, 2, (16,), groups=groups, norm_eps=1e-3)
    found = {(part.num_groups, part.eps) for part in model.modules() if isinstance(part, nn.GroupNorm)}
    assert found == {(groups or groups_for(channels), 1e-3)}


REFUSED = {
    "groups=32: must divide model.channels=16; null gives 4": {"groups": 32, "multipliers": (2, 4)},
    "groups=0: must divide": {"groups": 0},
    "groups=-8: must divide": {"groups": -8},
    "norm_eps=0": {"norm_eps": 0},
    "downsample=both: symmetric or asymmetric": {"downsample": "both"},
    "head_dim=3: must divide the 32 channels": {"head_dim": 3, "attention": ()},
    "head_dim=0": {"head_dim": 0},
    "freq_shift=2: 0 or 1": {"freq_shift": 2},
    "first_t=-1: 0 or 1": {"first_t": -1},
    "first_weights=random: torch or fan_average": {"first_weights": "random"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(said):
    with pytest.raises(ValueError, match=rf"^model\.{said}[^\n]*$"), torch.device("meta"):
        UNet(SHAPE, 16, **{"multipliers": (1, 2), **REFUSED[said]})


def test_epsilon_is_that_of_the_norm():
    layer, x = network(norm_eps=0.5).last[0], randn(2, 16, 4, 4)
    split = x.reshape(2, layer.num_groups, -1)
    plain = (split - split.mean(2, keepdim=True)) / (split.var(2, unbiased=False, keepdim=True) + 0.5).sqrt()
    with torch.no_grad():
        expected = layer.weight[:, None, None] * plain.reshape(x.shape) + layer.bias[:, None, None]
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("H, W", [(8, 8), (6, 10), (2, 4), (5, 7)])
def test_asymmetric_pads_right_and_below_alone(H, W):
    layer, x = Asymmetric(3).double(), randn(2, 3, H, W)
    padded = x.new_zeros(2, 3, H + 1, W + 1)
    padded[:, :, :H, :W] = x
    windows = F.unfold(padded, 3, stride=2)  # the sums of the convolution, written out
    with torch.no_grad():
        expected = (layer.weight.flatten(1) @ windows + layer.bias[:, None]).reshape(2, 3, H // 2, W // 2)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_symmetric_is_asymmetric_one_pixel_further():
    # On an image with one more row and column of zeros above and on the left, the two see the same windows.
    one, other, x = Symmetric(2).double(), Asymmetric(2).double(), randn(1, 2, 8, 8)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        moved = other(F.pad(x, (1, 0, 1, 0)))[:, :, :4, :4]
        torch.testing.assert_close(one(x), moved, rtol=0, atol=1e-12)
        assert not torch.allclose(one(x), other(x))


def attention(channels: int, head_dim: int | None) -> Attention:
    torch.manual_seed(0)
    return randomized(Attention(channels, head_dim, lambda width: nn.GroupNorm(4, width))).double()


def test_a_head_of_all_channels_is_one_head():
    x = randn(2, 16, 3, 5)
    with torch.no_grad():
        assert torch.equal(attention(16, 16)(x), attention(16, None)(x))


def test_heads_attend_by_themselves():
    layer, x = attention(16, 4), randn(2, 16, 3, 5)
    with torch.no_grad():
        q, k, v = layer.qkv(layer.norm(x)).flatten(2).chunk(3, dim=1)  # each [B, C, H·W]
        heads = []
        for c in range(0, 16, 4):
            one = slice(c, c + 4)
            weight = (torch.einsum("bci,bcj->bij", q[:, one], k[:, one]) / math.sqrt(4)).softmax(2)
            heads.append(torch.einsum("bij,bcj->bci", weight, v[:, one]))
        h = torch.cat(heads, dim=1).reshape(x.shape)
        torch.testing.assert_close(layer(x), x + layer.out(h), rtol=0, atol=1e-12)


def test_every_attention_has_the_heads_that_were_asked_for():
    heads = [part.head_dim for part in network(head_dim=8).modules() if isinstance(part, Attention)]
    assert heads == [8] * 4  # down, in the middle, up twice


@pytest.mark.parametrize("head_dim", [1, 16])
def test_a_head_may_have_one_channel_or_all(head_dim):
    assert attention(16, head_dim).head_dim == head_dim


@pytest.mark.parametrize("freq_shift", [0, 1])
@pytest.mark.parametrize("flip", [False, True])
def test_the_embedding_in_closed_form(freq_shift, flip):
    t, half = 7.0, 12
    angle = [t * 10_000 ** (-i / (half - freq_shift)) for i in range(half)]
    sines, cosines = [math.sin(a) for a in angle], [math.cos(a) for a in angle]
    found = timestep_embedding(torch.tensor([t]), 2 * half, freq_shift, flip)[0].tolist()
    assert found == pytest.approx(cosines + sines if flip else sines + cosines, abs=1e-5)


def test_the_network_passes_the_options_of_its_embedding_on():
    plain, flipped = network(), network(flip_sin_to_cos=True)
    with torch.no_grad():
        assert not torch.allclose(plain.time(T)[1], network(freq_shift=0).time(T)[1])
        assert not torch.allclose(plain.time(T), flipped.time(T))
        flipped.time.mlp[0].weight.copy_(plain.time.mlp[0].weight.roll(8, dims=1))  # sines and cosines change places
        torch.testing.assert_close(flipped.time(T), plain.time(T), rtol=0, atol=1e-12)


def test_from_0_at_t_is_from_1_at_t_before():
    x = randn(2, *SHAPE)
    assert torch.equal(answer(network(first_t=0), T + 3, x), answer(network(first_t=1), T + 2, x))
    assert not torch.equal(answer(network(first_t=0), T, x), answer(network(first_t=1), T, x))


def test_the_unet_counts_from_0_and_the_perceptron_from_1():
    assert network().time.before == 1 and MLP(SHAPE).time.before == 0 and TimeEmbedding(8, 8).before == 0


def fans(layer: nn.Conv2d | nn.Linear) -> tuple[int, int]:
    """Numbers that go into one output, and outputs that one input goes into."""
    pixels = math.prod(layer.weight.shape[2:])
    return layer.weight.shape[1] * pixels, layer.weight.shape[0] * pixels


def test_fan_average_gives_every_layer_its_variance():
    model = UNet(SHAPE, 64, (1, 2), attention=(8,), first_weights="fan_average")
    seen = 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, fan_out = fans(layer)
            fan_out = fan_in if name.endswith("qkv") else fan_out  # three layers beside each other
            zero = name.endswith(("conv_2", "out", "last.2"))
            limit = math.sqrt(6 / (fan_in + fan_out)) * (1e-5 if zero else 1)
            assert layer.weight.abs().max() <= limit * (1 + 1e-6), name
            spread = layer.weight.square().mean().sqrt().item()
            assert spread == pytest.approx(limit / math.sqrt(3), rel=2 / math.sqrt(layer.weight.numel())), name
            assert not layer.bias.any(), name
            seen += zero
    assert seen == 8 + 4 + 1  # second convolutions of residual blocks, projections of attentions, the last one


def test_a_fresh_network_of_fan_average_is_all_but_zero():
    x = randn(2, *SHAPE, dtype=torch.float32)
    with torch.no_grad():
        output = UNet(SHAPE, first_weights="fan_average")(x, T)
    assert 0 < output.abs().max() < 1e-3
