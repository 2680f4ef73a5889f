"""Points on concentric rings: two numbers a point, so that a whole distribution can be drawn and checked."""

import math
from functools import cached_property

import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.noise import stream

TRAINING, HELD_OUT = 4096, 1024
OUTERMOST = 0.8
MOST = 1000


class Rings:
    """Points as images of one pixel and two channels: x and y in [-1, 1], in 256 levels each.

    The k-th of `rings` circles has the radius 0.8·k/rings and a share of the points that grows with it, so that every
    circle is equally dense; `noise` is the standard deviation across the circle; `seed` names the points.
    Raises ValueError for fewer than one ring or more than 1,000, and for noise that is negative or infinite.
    """

    grey_levels = 256

    def __init__(self, rings: int = 2, noise: float = 0.02, seed: int = 0):
        if not 1 <= rings <= MOST or not 0 <= noise < math.inf:
            said = f"data.source.rings={rings}, data.source.noise={noise}"
            raise ValueError(f"{said}: at least 1 ring and at most {MOST:,}, noise of at least 0")
        self.rings, self.noise, self.seed = rings, noise, seed

    @property
    def train(self) -> Tensor:
        """uint8 `[4096, 2, 1, 1]`."""
        return self._points[:TRAINING]

    @property
    def held_out(self) -> Tensor:
        """uint8 `[1024, 2, 1, 1]`."""
        return self._points[TRAINING:]

    @property
    def radii(self) -> Tensor:
        """Radius of every circle, float32 `[rings]`, rising."""
        return OUTERMOST * torch.arange(1, self.rings + 1) / self.rings

    @cached_property
    def _points(self) -> Tensor:
        generator, n = stream(self.seed), TRAINING + HELD_OUT
        ring = torch.multinomial(self.radii, n, replacement=True, generator=generator)
        angle = 2 * math.pi * torch.rand(n, generator=generator)
        radius = self.radii[ring] + self.noise * torch.randn(n, generator=generator)
        return to_uint8(torch.stack([radius * angle.cos(), radius * angle.sin()], 1))[:, :, None, None]
