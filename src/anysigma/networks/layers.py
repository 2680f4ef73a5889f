"""The parts of the DDPM U-Net (DDPM appendix B)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of t, `[B]` → float32 `[B, dim]`, wavelengths 2π..2π·10⁴ (Vaswani et al. 2017, section 3.5).

    Formed in float32 whatever surrounds it: bfloat16 holds no integer above 256 exactly, so t = 998 and 999 would
    become one. Raises ValueError unless dim is even and ≥ 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"a timestep embedding needs an even width of at least 4, got {dim}")
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=t.device, dtype=torch.float32))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def zero_init(module: nn.Module) -> nn.Module:
    """The same module with all parameters zero: a block that starts as the identity, a network that starts at 0."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with at most 32 groups of at least 4 channels (128 channels: 32 groups, as DDPM has them).

    Groups of one channel would subtract the time embedding, a constant per channel, again.
    """
    groups = max(g for g in range(1, 33) if channels % g == 0 and (4 * g <= channels or g == 1))
    return nn.GroupNorm(groups, channels)


class TimeEmbedding(nn.Module):
    """t `[B]` → `[B, dim]`: sinusoids of `channels` and a two-layer perceptron."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.channels).to(self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with the time embedding added between them; the second starts at zero."""

    def __init__(self, inputs: int, outputs: int, time_dim: int, dropout: float):
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
    """Self-attention over all pixels, one head, the output projection starting at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each [B, H·W, C]
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(h.transpose(1, 2).reshape(x.shape))
