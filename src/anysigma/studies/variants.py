"""The given sampler at other settings, and images made with it: what studies compare."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.samplers.base import Sampler, describe, generate
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Explicit
from anysigma.machine.progress import progress
from anysigma.studies.base import Model


def variant(sampler: Sampler, eta: float | None = None, **settings: Any) -> Generalized:
    """The sampler with another η, S or clip and the same τ rule. Raises ValueError for one that has no such settings."""
    if not isinstance(sampler, Generalized):
        raise ValueError(f"this study changes η and S of a sampler, and {type(sampler).__name__} has none; use sampler=ddim")
    return replace(sampler, **settings, **({} if eta is None else {"sigma": Eta(eta)}))


def each_S(sampler: Sampler, steps: Sequence[int], T: int) -> list[int]:
    """The S of `steps` that T allows, rising, or T where it allows none. Raises ValueError where τ is a fixed list."""
    if isinstance(getattr(sampler, "tau", None), Explicit):
        raise ValueError("this study compares several S, and sampler.tau is one list; use a rule: sampler/tau=uniform")
    if not steps or min(steps) < 1:
        raise ValueError(f"study.steps={list(steps)}: at least one S, and at least 1 step each, is needed")
    return sorted({S for S in steps if S <= T}) or [T]


def setting(sampler: Sampler, T: int) -> dict[str, Any]:
    """A card's lines on the sampler, without S, for figures of several S."""
    return {name: value for name, value in describe(sampler, T).items() if name != "S"}


def sampled(model: Model, sampler: Sampler, n: int, *, seed: int, block: int) -> Tensor:
    """x_0 of images 0..n-1, float `[n, C, H, W]` on the CPU, unrounded."""
    block = min(block, n)
    blocks = generate(model.denoiser, sampler, range(n), model.shape, seed=seed, block=block)
    return torch.cat(
        [x_0.cpu() for _, x_0 in progress(blocks, -(-n // block), f"{len(sampler.pairs(model.denoiser.process.T))} steps")]
    )


def device(model: Model) -> torch.device:
    """Where the model computes."""
    return next(model.denoiser.parameters()).device


@torch.inference_mode()
def path(model: Model, sampler: Sampler, n: int, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, x_t, the x_0 predicted from it) of images 0..n-1 from x_T on, then (0, x_0, x_0); `[n, *shape]` on the CPU."""
    noise = ImageNoise(range(n), model.shape, seed, device(model))
    x_t = noise()
    for step in sampler.trajectory(model.denoiser, x_t, noise):
        yield step.t, x_t.cpu(), step.x_0.cpu()
        x_t = step.x_s
    yield 0, x_t.cpu(), x_t.cpu()
