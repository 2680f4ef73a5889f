"""The parts of the DDPM U-Net (DDPM appendix B)."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Word = TypeVar("Word", str, int)


def timestep_embedding(t: Tensor, dim: int, freq_shift: int = 1, flip_sin_to_cos: bool = False) -> Tensor:
    """Sinusoids of t, `[B]` → float32 `[B, dim]`, of frequencies 10⁻⁴ᵏ, k = i/(dim/2 - freq_shift) (Vaswani et al. 2017).

    With `freq_shift` 1 the wavelengths are 2π..2π·10⁴, ends included; with 0 the longest is left out. The sines come
    first, or with `flip_sin_to_cos` the cosines.
    Formed in float32 whatever surrounds it: bfloat16 holds no integer above 256 exactly, so t = 998 and 999 would
    become one. Raises ValueError unless dim is even and ≥ 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"a timestep embedding needs an even width of at least 4, got {dim}")
    half = dim // 2
    exponent = -math.log(10_000) / (half - freq_shift)
    angle = t.float()[:, None] * torch.exp(exponent * torch.arange(half, device=t.device, dtype=torch.float32))
    waves = [angle.sin(), angle.cos()]
    return torch.cat(waves[::-1] if flip_sin_to_cos else waves, dim=1)


def one_of(key: str, word: Word, words: Collection[Word]) -> Word:
    """The word; raises ValueError unless it is one of `words`."""
    if word not in words:
        raise ValueError(f"model.{key}={word}: {' or '.join(map(str, words))}")
    return word


def zero_init(module: nn.Module) -> nn.Module:
    """The same module with all parameters zero: a block that starts as the identity, a network that starts at 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def groups_for(channels: int, groups: int | None = None) -> int:
    """`groups`, or where null at most 32 of at least 4 channels (128 channels: 32 groups, as DDPM has them).

    Groups of one channel would subtract the time embedding, a constant per channel, again.
    Raises ValueError unless the groups divide `channels`, and with them every multiple.
    """
    if groups is None:
        return max(g for g in range(1, 33) if channels % g == 0 and (4 * g <= channels or g == 1))
    if groups < 1 or channels % groups:
        raise ValueError(f"model.groups={groups}: must divide model.channels={channels}; null gives {groups_for(channels)}")
    return groups


class TimeEmbedding(nn.Module):
    """t `[B]` → `[B, dim]`: sinusoids of `channels` and a two-layer perceptron.

    t = 1 is embedded as the number `first_t`, 0 or 1. `freq_shift` (0 or 1) and `flip_sin_to_cos` are those of
    `timestep_embedding`. Raises ValueError for another `first_t` or `freq_shift`.
    """

    def __init__(self, channels: int, dim: int, freq_shift: int = 1, flip_sin_to_cos: bool = False, first_t: int = 1):
        super().__init__()
        self.channels, self.before = channels, 1 - one_of("first_t", first_t, (0, 1))
        self.waves = {"freq_shift": one_of("freq_shift", freq_shift, (0, 1)), "flip_sin_to_cos": flip_sin_to_cos}
        self.mlp = nn.Sequential(nn.Linear(channels, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        waves = timestep_embedding(t - self.before, self.channels, **self.waves)
        return self.mlp(waves.to(self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time embedding added between them; the second starts at zero.

    `norm`: channels → GroupNorm.
    """

    def __init__(self, inputs: int, outputs: int, time_dim: int, dropout: float, norm: Callable[[int], nn.GroupNorm]):
        super().__init__()
        self.norm_1, self.conv_1 = norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_dim, outputs)
        self.norm_2, self.dropout = norm(outputs), nn.Dropout(dropout)
        self.conv_2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over all pixels, the output projection starting at zero.

    One head, or with `head_dim` one for every `head_dim` channels; `norm`: channels → GroupNorm. Raises ValueError
    where `head_dim` does not divide the channels.
    """

    def __init__(self, channels: int, head_dim: int | None, norm: Callable[[int], nn.GroupNorm]):
        super().__init__()
        self.head_dim = channels if head_dim is None else head_dim
        if self.head_dim < 1 or channels % self.head_dim:
            raise ValueError(
                f"model.head_dim={head_dim}: must divide the {channels} channels of an attention; null: one head"
            )
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each [B, H·W, C]
        q, k, v = (one.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for one in qkv)  # each [B, heads, H·W, head_dim]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h.transpose(1, 2).reshape(x.shape))


class Symmetric(nn.Conv2d):
    """Half the size by a 3x3 convolution of stride 2, one zero on every side."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)


class Asymmetric(nn.Conv2d):
    """Half the size by a 3x3 convolution of stride 2, one zero on the right and below alone: DDPM's own."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


DOWNSAMPLES = {"symmetric": Symmetric, "asymmetric": Asymmetric}


@dataclass(frozen=True)
class Layers:
    """The layers of one network, made with what all of them share.

    `groups` and `norm_eps` of every GroupNorm, `head_dim` of every attention, `downsample` of every level.
    Raises ValueError for an epsilon that is not > 0 and for another word than those of `DOWNSAMPLES`.
    """

    time_dim: int
    dropout: float
    groups: int
    norm_eps: float
    head_dim: int | None
    downsample: str

    def __post_init__(self):
        one_of("downsample", self.downsample, DOWNSAMPLES)
        if not self.norm_eps > 0:
            raise ValueError(f"model.norm_eps={self.norm_eps}: must be > 0")

    def norm(self, channels: int) -> nn.GroupNorm:
        """GroupNorm over `channels`."""
        return nn.GroupNorm(self.groups, channels, self.norm_eps)

    def residual(self, inputs: int, outputs: int) -> ResidualBlock:
        """A residual block."""
        return ResidualBlock(inputs, outputs, self.time_dim, self.dropout, self.norm)

    def attention(self, channels: int) -> Attention:
        """Self-attention."""
        return Attention(channels, self.head_dim, self.norm)

    def half(self, channels: int) -> nn.Conv2d:
        """The way to the next level down."""
        return DOWNSAMPLES[self.downsample](channels)
