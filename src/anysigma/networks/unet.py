"""The U-Net of DDPM (appendix B), for any C, H, W."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anysigma.networks.layers import Attention, ResidualBlock, TimeEmbedding, norm, zero_init


class UNet(nn.Module):
    """(x_t `[B, C, H, W]`, t long `[B]`) → `[B, C, H, W]`.

    `shape` (C, H, W); `channels` at full resolution, times `multipliers` level by level, each level half the size of
    the one before; `blocks` residual blocks a level; self-attention at the levels whose height is in `attention`
    and in the middle. Raises ValueError where H or W cannot be halved so often.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        dropout: float = 0.1,
    ):
        super().__init__()
        C, H, W = shape
        check_strides(H, W, len(multipliers) - 1)
        widths = [channels * m for m in multipliers]
        heights = [H >> level for level in range(len(widths))]
        self.time = TimeEmbedding(channels, 4 * channels)

        def block(inputs: int, outputs: int, height: int) -> nn.ModuleList:
            residual = ResidualBlock(inputs, outputs, 4 * channels, dropout)
            return nn.ModuleList([residual, Attention(outputs) if height in attention else nn.Identity()])

        self.first = nn.Conv2d(C, channels, 3, padding=1)
        self.down, skips = nn.ModuleList(), [channels]
        for level, (width, height) in enumerate(zip(widths, heights, strict=True)):
            self.down.append(nn.ModuleList())
            for _ in range(blocks):
                self.down[-1].append(block(skips[-1], width, height))
                skips.append(width)
            if level < len(widths) - 1:
                self.down[-1].append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)

        top = widths[-1]
        self.middle = nn.ModuleList(
            [ResidualBlock(top, top, 4 * channels, dropout), Attention(top), ResidualBlock(top, top, 4 * channels, dropout)]
        )

        self.up, width_in = nn.ModuleList(), top
        for level, (width, height) in reversed(list(enumerate(zip(widths, heights, strict=True)))):
            self.up.append(nn.ModuleList())
            for _ in range(blocks + 1):
                self.up[-1].append(block(width_in + skips.pop(), width, height))
                width_in = width
            if level > 0:
                self.up[-1].append(nn.Conv2d(width, width, 3, padding=1))
        self.last = nn.Sequential(norm(channels), nn.SiLU(), zero_init(nn.Conv2d(channels, C, 3, padding=1)))

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


def check_strides(H: int, W: int, halvings: int) -> None:
    """Raises ValueError unless H and W can be halved `halvings` times."""
    if H % 2**halvings or W % 2**halvings:
        raise ValueError(f"the network halves its input {halvings} times: {H}x{W} must be divisible by {2**halvings}")


def halvings(H: int, W: int, most: int) -> int:
    """How often H x W is halved while both are even and ≥ 8, at most `most` times."""
    count = 0
    while count < most and H % 2 == W % 2 == 0 and min(H, W) >= 8:
        H, W, count = H // 2, W // 2, count + 1
    return count


def fitted(
    shape: Sequence[int],
    channels: int = 40,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 1,
    attention: Sequence[int] = (4,),
    dropout: float = 0.0,
) -> UNet:
    """A `UNet` with as many of `multipliers` as the shape can be halved: one that fits any C, H, W."""
    levels = 1 + halvings(shape[1], shape[2], len(multipliers) - 1)
    return UNet(shape, channels, tuple(multipliers)[:levels], blocks, attention, dropout)
