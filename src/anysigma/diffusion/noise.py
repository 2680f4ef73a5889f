"""Randomness without state: every number is a function of the integers and words that name it."""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

LOW = 0xFFFFFFFF  # the low 32 bits
MULTIPLIERS, WEYL = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def stream_seed(*key: int | str) -> int:
    """A 63-bit seed that is a function of the key alone; different keys give unrelated streams."""
    plain = tuple(k if isinstance(k, str) else int(k) for k in key)
    return int.from_bytes(hashlib.blake2b(repr(plain).encode(), digest_size=8).digest(), "little") >> 1


def stream(*key: int | str) -> Generator:
    """A fresh generator on the CPU for the stream named by `key`: for orders and choices, which no device makes."""
    return Generator().manual_seed(stream_seed(*key))


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 (Salmon et al. 2011): four words for each counter of four words, all in 0..2³²-1, long, any shape.

    int64 products wrap, so that their bits are those of the unsigned product: hi is p >> 32, lo is p, masked late.
    """
    (a, b, c, d), (k_0, k_1) = counter, key
    for _ in range(10):
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a = (q >> 32).bitwise_xor_(b).bitwise_xor_(k_0).bitwise_and_(LOW)
        c = (p >> 32).bitwise_xor_(d).bitwise_xor_(k_1).bitwise_and_(LOW)
        b, d = q, p
        k_0, k_1 = (k_0 + WEYL[0]) & LOW, (k_1 + WEYL[1]) & LOW
    return a, b & LOW, c, d & LOW


class Draws:
    """Numbers that belong to rows: what row k gets is a function of (key, k, draw) alone, on whatever device it is made.

    `key`: the seed and what for. Rows are long `[B]`: images, or positions of the training stream. The integers behind
    the numbers are the same on every device, the numbers to rounding.
    """

    def __init__(self, *key: int | str):
        seed = stream_seed(*key)
        self._key = (seed & LOW, seed >> 32)

    def words(self, rows: Tensor, n: int, draw: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """4 n words in 0..2³²-1 a row, as four long `[B, n]`."""
        number = torch.arange(n, device=rows.device).expand(len(rows), n)
        low, high = (part.expand(len(rows), n) for part in (rows[:, None] & LOW, (rows[:, None] >> 32) & LOW))
        return philox((number, low, torch.full_like(number, draw), high), self._key)

    def uniform(self, rows: Tensor, draw: int = 0) -> Tensor:
        """u in [0, 1), one a row: float64 of 53 bits, on MPS (which has none) float32 of 24 bits."""
        a, b, _, _ = (word[:, 0] for word in self.words(rows, 1, draw))
        if rows.device.type == "mps":
            return (a >> 8).float() * 2.0**-24
        return ((a << 21) | (b >> 11)).double() * 2.0**-53

    def normal(self, rows: Tensor, shape: Sequence[int], draw: int = 0) -> Tensor:
        """ε ~ N(0, I), float32 `[B, *shape]`: √(-2 ln u) (cos 2πv, sin 2πv) of every two words, Box & Muller 1958."""
        size = math.prod(shape)
        n = -(-size // 4)
        a, b, c, d = (word.float() for word in self.words(rows, n, draw))
        normals = torch.empty(len(rows), 4, n, device=rows.device)
        for i, (u, v) in enumerate(((a, b), (c, d))):
            radius = u.add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()  # u in (0, 1]: no logarithm of 0
            angle = v.mul_(2 * math.pi * 2.0**-32)
            normals[:, 2 * i], normals[:, 2 * i + 1] = radius * angle.cos(), radius * angle.sin()
        return normals.flatten(1)[:, :size].reshape(-1, *shape)


class ImageNoise:
    """One noise stream per image: what image k receives depends on (seed, k) alone.

    So x_T and every later noise are bit-equal for any batch size and any number of processes, and equal to rounding on
    every device.
    """

    def __init__(self, ks: Sequence[int], shape: Sequence[int], seed: int = 0, device: torch.device | str = "cpu"):
        self._rows = torch.tensor([int(k) for k in ks], dtype=torch.long, device=device)
        self._draws, self._shape, self._next = Draws(seed, "image"), tuple(shape), 0

    def __call__(self) -> Tensor:
        """The next ε ~ N(0, I) of every image, float32 `[B, *shape]`; the first call is x_T."""
        self._next += 1
        return self._draws.normal(self._rows, self._shape, self._next - 1)
