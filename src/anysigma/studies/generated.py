"""Generated images: made once, as shards that a cut evaluation and several processes share; unrounded; on their way."""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.samplers.base import Sampler, describe, generate
from anysigma.machine.distributed import gathered, is_first, my_share, rank_and_world, spread
from anysigma.machine.progress import progress
from anysigma.machine.writing import written
from anysigma.metrics.card import card_id
from anysigma.metrics.fidelity import Features
from anysigma.metrics.vectors import vectors
from anysigma.studies.base import Model
from anysigma.studies.halves import InHalves


@dataclass(frozen=True)
class Images:
    """uint8 images 0..n-1 on the CPU, each where it was made: this rank has those of the numbers `ks`, `mine`
    `[len(ks), C, H, W]`. They stay there; what is asked of them travels. Every rank calls what gives something of them all.
    """

    n: int
    ks: Sequence[int]
    mine: Tensor

    @classmethod
    def shared(cls, images: Tensor) -> Self:
        """Of images `[n, C, H, W]` that every rank has, a share each."""
        rank, world = rank_and_world()
        return cls(len(images), range(len(images))[rank::world], images[rank::world])

    def vectors(self, features: Features) -> Tensor:
        """Of all images, `[n, D]`, on every rank: each computes those of its own."""
        return gathered(self.ks, vectors(self.mine, features) if self.ks else torch.empty(0))

    def some(self, ks: Iterable[int]) -> Tensor:
        """A few of them, in this order, on every rank."""
        ks, at = list(ks), {k: i for i, k in enumerate(self.ks)}
        places = [place for place, k in enumerate(ks) if k in at]
        return gathered(places, self.mine[[at[ks[place]] for place in places]])

    def all(self) -> Tensor:
        """All of them on every rank: what asks for them together is for few."""
        return self.some(range(self.n))


def generated(
    model: Model, sampler: Sampler, n: int, *, seed: int, block: int, folder: Path, what: str = "sampling"
) -> Images:
    """Images 0..n-1, each rank making its share.

    Block b lies as `folder`/shards/<setting>/<b>.npy, written aside and renamed: what was made is not made again. The
    setting is the card of model and sampler, with seed and block, so another model's shards are never taken; it lies
    beside them as setting.json.
    """
    kind, facts = type(sampler), describe(sampler, model.denoiser.process.T)
    of = {"module": kind.__module__, **facts}  # two packages may have a class of one name
    setting = {"model": model.card, "sampler": of, "seed": seed, "block": block}
    shards = folder / "shards" / card_id(setting)
    if is_first():
        shards.mkdir(parents=True, exist_ok=True)
        (shards / "setting.json").write_text(json.dumps(setting, indent=1, default=str))
    blocks = sorted({k // block for k in my_share(range(n), block)})
    made = _blocks(model, sampler, blocks, seed, block, shards)
    pieces = list(progress(made, len(blocks), what))
    if isinstance(model.denoiser, InHalves):
        model.denoiser.rows.kept(shards)
    ks = [k for b in blocks for k in range(b * block, min(n, (b + 1) * block))]  # a block is whole, the last one too
    return Images(n, ks, torch.cat([torch.empty(0, *model.shape, dtype=torch.uint8), *pieces])[: len(ks)])


def cost(model: Model, samplers: Sequence[Sampler], n: int, block: int, what: str) -> str:
    """What n images of each will cost, from one timed call of the network on a block; `what` they are, in words."""
    T, device = model.denoiser.process.T, model.denoiser.device
    evaluations = sum(sampler.evaluations(T) for sampler in samplers)
    x_T, t = torch.zeros(block, *model.shape, device=device), torch.full((block,), T, device=device)
    with torch.inference_mode():
        for _ in range(2):  # the first one may compile, allocate, choose kernels
            start = time.perf_counter()
            model.denoiser.output(x_T, t).sum().item()
    blocks = -(-n // block)
    seconds = (time.perf_counter() - start) * blocks * evaluations / rank_and_world()[1]
    asked = f"{blocks * block * evaluations:,} network evaluations"
    return f"{what}: {asked}, sampling takes {spoken(seconds)}"


def spoken(seconds: float) -> str:
    """About 40 s, 12 min, 3.5 h, 4 days, on this machine."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds > 2 * length:
            return f"about {seconds / length:.2g} {unit} here, if none were made before"
    return f"about {seconds:.2g} s here, if none were made before"


def _blocks(model: Model, sampler: Sampler, blocks: list[int], seed: int, block: int, shards: Path) -> Iterator[Tensor]:
    for b in blocks:
        path = shards / f"{b:06d}.npy"
        if (images := _read(path, (block, *model.shape))) is None:
            ks = range(b * block, (b + 1) * block)
            (_, x_0), *_ = generate(model.denoiser, sampler, ks, model.shape, seed=seed, block=block)
            images = to_uint8(x_0).cpu()
            _write(path, images)
        yield images


def _read(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """A whole block, or None where there is none."""
    try:
        images = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return torch.from_numpy(images) if images.shape == shape and images.dtype == np.uint8 else None


def _write(path: Path, images: Tensor) -> None:
    with written(path) as aside, open(aside, "wb") as file:
        np.save(file, images.numpy())


def sampled(model: Model, sampler: Sampler, n: int, *, seed: int, block: int) -> Tensor:
    """x_0 of images 0..n-1, float `[n, C, H, W]` on the CPU, unrounded, on every rank, each making its share."""
    block = spread(n, block)
    ks = my_share(range(n), block)
    blocks = generate(model.denoiser, sampler, ks, model.shape, seed=seed, block=block)
    what = f"{sampler.evaluations(model.denoiser.process.T)} steps"
    pieces = [x_0.cpu() for _, x_0 in progress(blocks, len({k // block for k in ks}), what)]
    return gathered(ks, torch.cat([torch.empty(0, *model.shape), *pieces]))


@torch.inference_mode()
def path(model: Model, sampler: Sampler, n: int, seed: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(t, x_t, the x_0 predicted from it) of images 0..n-1 from x_T on, then (0, x_0, x_0); `[n, *shape]` on the CPU."""
    noise = ImageNoise(range(n), model.shape, seed, model.denoiser.device)
    x_t = noise()
    for step in sampler.trajectory(model.denoiser, x_t, noise):
        yield step.t, x_t.cpu(), step.x_0.cpu()
        x_t = step.x_s
    yield 0, x_t.cpu(), x_t.cpu()
