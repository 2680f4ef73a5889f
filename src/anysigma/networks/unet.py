"""The U-Net of DDPM (appendix B), for any C, H, W."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anysigma.networks.first_weights import FIRST_WEIGHTS
from anysigma.networks.layers import Layers, TimeEmbedding, groups_for, one_of, zero_init


class UNet(nn.Module):
    """(x_t `[B, C, H, W]`, t long `[B]`) → `[B, C, H, W]`.

    `shape` (C, H, W); `channels` at full resolution, times `multipliers` level by level, each level half the size of
    the one before; `blocks` residual blocks a level; self-attention at the levels whose height is in `attention`
    and in the middle; with `fit` as many multipliers are used as H and W can be halved, so that any shape will do.

    Conventions in which U-Nets of this form differ, for weights to be exchanged: `groups` and `norm_eps`, number and
    epsilon of every GroupNorm (null: `groups_for` of `channels`; DDPM's 32 and 1e-6); `downsample`, `symmetric` (one
    zero on every side) or DDPM's `asymmetric` (right and below alone); `head_dim`, channels of one attention head
    (null: one head, as DDPM); the time embedding's `freq_shift` (0 or 1), `flip_sin_to_cos` and `first_t`, the number
    it is given for t = 1 (0, as DDPM, or 1). Groups of one channel are deaf to the time. `first_weights`: `torch`, or
    DDPM's `fan_average`.

    Raises ValueError for a convention that cannot be, groups that do not divide `channels`, a head that does not
    divide those of an attention, and where, without `fit`, H or W cannot be halved so often.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 40,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 1,
        attention: Sequence[int] = (4,),
        dropout: float = 0.0,
        fit: bool = True,
        groups: int | None = None,
        norm_eps: float = 1e-5,
        downsample: str = "symmetric",
        head_dim: int | None = None,
        freq_shift: int = 1,
        flip_sin_to_cos: bool = False,
        first_t: int = 0,
        first_weights: str = "torch",
    ):
        super().__init__()
        C, H, W = shape
        most = len(multipliers) - 1
        strides = halvings(H, W, most) if fit else checked(H, W, most)
        levels = [(channels * m, H >> level) for level, m in enumerate(multipliers[: strides + 1])]
        bottom, top = levels[0][0], levels[-1][0]
        self._layers = layers = Layers(4 * channels, dropout, groups_for(channels, groups), norm_eps, head_dim, downsample)
        self._attention = tuple(attention)
        self.time = TimeEmbedding(channels, 4 * channels, freq_shift, flip_sin_to_cos, first_t)
        self.first = nn.Conv2d(C, channels, 3, padding=1)
        self.down, skips = self._down(channels, levels, blocks)
        self.middle = nn.ModuleList([layers.residual(top, top), layers.attention(top), layers.residual(top, top)])
        self.up = self._up(skips, levels, blocks + 1)
        self.last = nn.Sequential(layers.norm(bottom), nn.SiLU(), zero_init(nn.Conv2d(bottom, C, 3, padding=1)))
        FIRST_WEIGHTS[one_of("first_weights", first_weights, FIRST_WEIGHTS)](self)

    def _block(self, inputs: int, outputs: int, height: int) -> nn.ModuleList:
        attention = self._layers.attention(outputs) if height in self._attention else nn.Identity()
        return nn.ModuleList([self._layers.residual(inputs, outputs), attention])

    def _down(self, channels: int, levels: list[tuple[int, int]], blocks: int) -> tuple[nn.ModuleList, list[int]]:
        """The way down, and the widths of what the way up will be handed."""
        down, skips = nn.ModuleList(), [channels]
        for number, (width, height) in enumerate(levels):
            down.append(nn.ModuleList())
            for _ in range(blocks):
                down[-1].append(self._block(skips[-1], width, height))
                skips.append(width)
            if number < len(levels) - 1:
                down[-1].append(self._layers.half(width))
                skips.append(width)
        return down, skips

    def _up(self, skips: list[int], levels: list[tuple[int, int]], blocks: int) -> nn.ModuleList:
        """The way up: every block takes one of `skips`, the last first."""
        up, width_in = nn.ModuleList(), levels[-1][0]
        for number, (width, height) in reversed(list(enumerate(levels))):
            up.append(nn.ModuleList())
            for _ in range(blocks):
                up[-1].append(self._block(width_in + skips.pop(), width, height))
                width_in = width
            if number > 0:
                up[-1].append(nn.Conv2d(width, width, 3, padding=1))
        return up

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        h = self.first(x_t.to(self.first.weight.dtype))
        skips = [h]
        for level in self.down:
            for part in level:
                h = part(h) if isinstance(part, nn.Conv2d) else part[1](part[0](h, time))
                skips.append(h)
        before, attention, after = self.middle
        h = after(attention(before(h, time)), time)
        for level in self.up:
            for part in level:
                if isinstance(part, nn.Conv2d):
                    h = part(F.interpolate(h, scale_factor=2.0, mode="nearest"))
                else:
                    h = part[1](part[0](torch.cat([h, skips.pop()], dim=1), time))
        return self.last(h)


def checked(H: int, W: int, halvings: int) -> int:
    """`halvings`; raises ValueError unless H and W can be halved so often."""
    if H % 2**halvings or W % 2**halvings:
        raise ValueError(f"the network halves its input {halvings} times: {H}x{W} must be divisible by {2**halvings}")
    return halvings


def halvings(H: int, W: int, most: int) -> int:
    """How often H x W is halved while both are even and ≥ 8, at most `most` times."""
    count = 0
    while count < most and H % 2 == W % 2 == 0 and min(H, W) >= 8:
        H, W, count = H // 2, W // 2, count + 1
    return count
