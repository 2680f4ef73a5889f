"""The way from noise to image: x_t and the x_0 predicted from it, along τ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler, at_most, describe
from anysigma.machine.distributed import is_first
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import path
from anysigma.studies.lineup import labels, lineup

TITLE = "From noise to image"
ABOUT = "One run of the sampler: the state x_t, and the x_0 that the network sees in it."

# Bytes of pixels in an animation: noise cannot be compressed, so the file will be about as large.
BUDGET = 600_000
STRIP = 10  # states in a still picture


@dataclass(frozen=True)
class Trajectory(Study):
    """x_t and f_θ(x_t) (DDIM eq. 9) from x_T to x_0, for several samplers from the same x_T, still and moving.

    `samplers` by name, with the given one: a strip each, in at most T steps. The given one's animation shows at most `n`
    images in at most `frames` frames, fewer images where the file would grow large; `seed` names the noise. Rank 0
    computes it alone.
    """

    samplers: Mapping[str, Sampler]
    n: int
    frames: int
    seed: int

    def __post_init__(self):
        if self.n < 1 or self.frames < 2:
            raise ValueError(f"n={self.n}, frames={self.frames}: at least 1 image and 2 frames are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Sample, and keep what is seen on the way."""
        T = model.denoiser.process.T
        every = list(lineup({name: at_most(one, T) for name, one in self.samplers.items()}, sampler).values())
        shown = dict(zip(labels(every, T), every, strict=True))
        settings = {label: describe(one, T) for label, one in shown.items()}
        card = {**model.card, **describe(sampler, T), "beside": settings, "seed": self.seed}
        result = Result("trajectory", TITLE, ABOUT, card=card)
        if not is_first():
            return result
        result.pictures["trajectory_steps"] = picture([states(model, one, self.seed) for one in every])
        result.captions["trajectory_steps"] = (
            f"x_t above, the x_0 predicted from it below, from the same x_T. From above: {'; '.join(shown)}."
        )
        result.pictures["trajectory_animation"] = self._animation(model, sampler)
        result.captions["trajectory_animation"] = "x_t on the left, the x_0 predicted from it on the right."
        result.plots["trajectory_settling"] = self._settling(model, shown)
        return result

    def _animation(self, model: Model, sampler: Sampler) -> np.ndarray:
        pixels = 2 * min(self.frames, len(sampler.pairs(model.denoiser.process.T)) + 1) * int(np.prod(model.shape))
        side = max(1, int(min(self.n, BUDGET / pixels) ** 0.5))
        ways = list(path(model, sampler, side**2, self.seed))
        shown = sorted({round(i) for i in np.linspace(0, len(ways) - 1, self.frames)})
        return np.stack([beside(*ways[i][1:], side) for i in shown])

    def _settling(self, model: Model, samplers: Mapping[str, Sampler]) -> Plot:
        curves = []
        for label, sampler in samplers.items():
            *before, (_, _, x_0) = path(model, sampler, self.n, self.seed)
            off = [
                (predicted.clamp(-1, 1) - x_0.clamp(-1, 1)).square().mean().sqrt().item() / 2 for _, _, predicted in before
            ]
            curves.append(Curve(label, [t for t, _, _ in before], off))
        caption = f"How far the predicted x_0 still is from the image it becomes, over {self.n} images; time runs leftward."
        return Plot(caption, "t", "root mean squared difference on [0, 1]", curves)


def beside(x_t: Tensor, x_0: Tensor, side: int) -> np.ndarray:
    """side x side images x_t, a white gap, and as many x_0: uint8 `[H, W, 3]`."""
    left, right = (to_uint8(x).reshape(side, side, *x.shape[1:]) for x in (x_t, x_0))
    gap = torch.full_like(left[:, :1], 255)
    return grid(torch.cat([left, gap, right], 1).flatten(0, 1), columns=2 * side + 1)


def strip(model: Model, sampler: Sampler, seed: int) -> np.ndarray:
    """One image on its way: x_t above, the x_0 predicted from it below, from x_T on the left to x_0 on the right."""
    return picture([states(model, sampler, seed)])


def states(model: Model, sampler: Sampler, seed: int) -> Tensor:
    """At most STRIP of one image's x_t and predicted x_0 from x_T on, then x_0 twice: `[2, columns, C, H, W]`."""
    *ways, end = path(model, sampler, 1, seed)
    shown = sorted({round(i) for i in np.linspace(0, len(ways) - 1, STRIP)})
    columns = [*(ways[i] for i in shown), end]
    return torch.stack([torch.cat([x_t for _, x_t, _ in columns]), torch.cat([x_0 for _, _, x_0 in columns])])


def picture(strips: Sequence[Tensor]) -> np.ndarray:
    """Strips one below the other, uint8 `[H, W, 3]`; white behind those of fewer states."""
    columns = max(strip.shape[1] for strip in strips)
    rows = [torch.cat([strip, strip.new_ones(2, columns - strip.shape[1], *strip.shape[2:])], 1) for strip in strips]
    return grid(to_uint8(torch.cat(rows).flatten(0, 1)), columns=columns)
