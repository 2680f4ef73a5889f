"""Randomness without state: every stream is a function of the integers that name it."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def stream_seed(*key: int) -> int:
    """A 63-bit seed that is a function of the key alone; different keys give unrelated streams."""
    digest = hashlib.blake2b(repr(tuple(int(k) for k in key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*key: int, device: torch.device | str = "cpu") -> Generator:
    """A fresh generator on `device` for the stream named by `key`."""
    return Generator(device).manual_seed(stream_seed(*key))


class ImageNoise:
    """One noise stream per image: what image k receives depends on (seed, k) alone.

    So x_T and every later noise are bit-equal for any batch size and any number of processes. Drawn on the CPU,
    so they are also the same on every device.
    """

    def __init__(self, ks: Sequence[int], shape: Sequence[int], seed: int = 0, device: torch.device | str = "cpu"):
        self._generators = [stream(seed, int(k)) for k in ks]
        self._shape, self._device = tuple(shape), device

    def __call__(self) -> Tensor:
        """The next ε ~ N(0, I) of every image, float32 `[B, *shape]`; the first call is x_T."""
        noise = torch.empty(len(self._generators), *self._shape)
        for row, generator in zip(noise, self._generators, strict=True):
            row.normal_(generator=generator)
        return noise.to(self._device)
