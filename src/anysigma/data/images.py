"""The only two range conversions of the house, uint8 0..255 ↔ float [-1, 1], and the hash that names a set of images."""

import hashlib

import torch
from torch import Tensor

ROUNDING = "x·127.5+127.5, to nearest"  # `to_uint8`, as cards say it


def from_uint8(images: Tensor) -> Tensor:
    """uint8 `[…]` → float32 in [-1, 1]: x/127.5 - 1, so 0 → -1 and 255 → 1 exactly."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(x_0: Tensor) -> Tensor:
    """Any float `[…]` → uint8: x · 127.5 + 127.5, rounded to nearest, values outside [-1, 1] held at the ends."""
    return (x_0.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def image_hash(*splits: Tensor) -> str:
    """16 hex digits of the sha256 over the shapes and contents of uint8 images."""
    digest = hashlib.sha256(repr(tuple(tuple(split.shape) for split in splits)).encode())
    for split in splits:
        digest.update(split.contiguous().numpy())
    return digest.hexdigest()[:16]
