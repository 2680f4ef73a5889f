"""What every sampler shares: the protocol, the loop over pairs (t, s), and images by blocks."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.noise import ImageNoise

Noise = Callable[[], Tensor]


class Step(NamedTuple):
    """One step t → s: the state it reached and the x_0 predicted on the way, both `[B, *shape]`."""

    t: int
    s: int
    x_s: Tensor
    x_0: Tensor


class Sampler(Protocol):
    """x_T → x_0 along τ with a given denoiser."""

    def pairs(self, T: int) -> list[tuple[int, int]]:
        """The steps (t, s) from the top down; the last has s = 0. Raises ValueError where T does not allow them."""
        ...

    def trajectory(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Iterator[Step]:
        """Every step as it is made; `noise()` returns ε of x_T's shape and is called only where noise is added."""
        ...

    def __call__(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Tensor:
        """x_0, `[B, *shape]`, about [-1, 1]."""
        ...


def pairs(tau: Sequence[int]) -> list[tuple[int, int]]:
    """Rising τ → [(τ_S, τ_{S-1}), …, (τ_2, τ_1), (τ_1, 0)]: each pair from one list, no t - 1."""
    return list(zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True))


@torch.inference_mode()
def generate(
    denoiser: Denoiser, sampler: Sampler, ks: Sequence[int], shape: Sequence[int], *, seed: int, block: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Images k in `ks` as (their numbers, x_0 `[n, *shape]`), block by block.

    Image k is always computed at row k % block of block k // block, its neighbours being those of that block, so
    the same k gives the same image whatever else is asked for. Rows nobody asked for are computed and dropped.
    """
    device = next(denoiser.parameters()).device
    wanted = set(ks)
    for b in sorted({k // block for k in wanted}):
        numbers = range(b * block, (b + 1) * block)
        noise = ImageNoise(numbers, shape, seed, device)
        x_0 = sampler(denoiser, noise(), noise)
        rows = [i for i, k in enumerate(numbers) if k in wanted]
        yield [numbers[i] for i in rows], x_0[rows]


def describe(sampler: Sampler, T: int) -> dict[str, Any]:
    """A sampler setting as plain values: S, σ rule, τ rule, clip."""
    facts = {name: getattr(sampler, name) for name in ("sigma", "tau", "clip") if hasattr(sampler, name)}
    plain = {name: value if isinstance(value, bool) else repr(value) for name, value in facts.items()}
    return {"sampler": type(sampler).__name__, "S": len(sampler.pairs(T)), **plain}
