"""The only two range conversions of the house: uint8 0..255 ↔ float [-1, 1]."""

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """uint8 `[…]` → float32 in [-1, 1]: x/127.5 - 1, so 0 → -1 and 255 → 1 exactly."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(x_0: Tensor) -> Tensor:
    """Any float `[…]` → uint8: x · 127.5 + 127.5, rounded to nearest, values outside [-1, 1] held at the ends."""
    return (x_0.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
