"""The way from noise to image: x_t and the x_0 predicted from it, along τ."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler
from anysigma.machine.distributed import is_first
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result
from anysigma.studies.base import Model
from anysigma.studies.variants import path, setting, variant

TITLE = "From noise to image"
ABOUT = "One run of the sampler: the state x_t, and the x_0 that the network sees in it."

# Bytes of pixels in an animation: noise cannot be compressed, so the file will be about as large.
BUDGET = 600_000
STRIP = 10  # states in a still picture


@dataclass(frozen=True)
class Trajectory:
    """x_t and f_θ(x_t) (DDIM eq. 9) from x_T to x_0, for several η from the same x_T, still and moving.

    `etas`: a strip each; `eta`: of the animation, which shows at most `n` images in at most `frames` frames, fewer
    images where the file would grow large; `seed` names the noise. Rank 0 computes it alone.
    """

    etas: Sequence[float]
    eta: float
    n: int
    frames: int
    seed: int

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False

    def __post_init__(self):
        if not self.etas or self.n < 1 or self.frames < 2:
            raise ValueError(f"etas={self.etas}, n={self.n}, frames={self.frames}: at least one η, 1 image and 2 frames")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Sample, and keep what is seen on the way."""
        T = model.denoiser.process.T
        card = {**model.card, **setting(sampler, T), "S": len(sampler.pairs(T)), "sigma": list(self.etas), "seed": self.seed}
        result = Result("trajectory", TITLE, ABOUT, card=card)
        if not is_first():
            return result
        strips = [strip(model, variant(sampler, eta=eta), self.seed) for eta in self.etas]
        result.pictures["trajectory_steps"] = np.concatenate(strips)
        result.captions["trajectory_steps"] = (
            f"x_t above, the x_0 predicted from it below, from the same x_T, for η = {listed(self.etas)} from above."
        )
        result.pictures["trajectory_animation"] = self._animation(model, variant(sampler, eta=self.eta))
        result.captions["trajectory_animation"] = (
            f"η = {self.eta:g}: x_t on the left, the x_0 predicted from it on the right."
        )
        result.plots["trajectory_settling"] = self._settling(model, sampler)
        return result

    def _animation(self, model: Model, sampler: Sampler) -> np.ndarray:
        pixels = 2 * min(self.frames, len(sampler.pairs(model.denoiser.process.T)) + 1) * int(np.prod(model.shape))
        side = max(1, int(min(self.n, BUDGET / pixels) ** 0.5))
        states = list(path(model, sampler, side**2, self.seed))
        shown = sorted({round(i) for i in np.linspace(0, len(states) - 1, self.frames)})
        return np.stack([beside(*states[i][1:], side) for i in shown])

    def _settling(self, model: Model, sampler: Sampler) -> Plot:
        curves = []
        for eta in self.etas:
            ways = list(path(model, variant(sampler, eta=eta), self.n, self.seed))
            *before, (_, _, x_0) = ways
            off = [
                (predicted.clamp(-1, 1) - x_0.clamp(-1, 1)).square().mean().sqrt().item() / 2 for _, _, predicted in before
            ]
            curves.append(Curve(f"η = {eta:g}", [t for t, _, _ in before], off))
        caption = f"How far the predicted x_0 still is from the image it becomes, over {self.n} images; time runs leftward."
        return Plot(caption, "t", "root mean squared difference on [0, 1]", curves)


def beside(x_t: Tensor, x_0: Tensor, side: int) -> np.ndarray:
    """side x side images x_t, a white gap, and as many x_0: uint8 `[H, W, 3]`."""
    left, right = (to_uint8(x).reshape(side, side, *x.shape[1:]) for x in (x_t, x_0))
    gap = torch.full_like(left[:, :1], 255)
    return grid(torch.cat([left, gap, right], 1).flatten(0, 1), columns=2 * side + 1)


def listed(etas: Sequence[float]) -> str:
    """0, 1."""
    return ", ".join(f"{eta:g}" for eta in etas)


def strip(model: Model, sampler: Sampler, seed: int) -> np.ndarray:
    """One image on its way: x_t above, the x_0 predicted from it below, from x_T on the left to x_0 on the right."""
    *ways, end = path(model, sampler, 1, seed)
    shown = sorted({round(i) for i in np.linspace(0, len(ways) - 1, STRIP)})
    columns = [*(ways[i] for i in shown), end]
    pictures = torch.cat([*(x_t for _, x_t, _ in columns), *(x_0 for _, _, x_0 in columns)])
    return grid(to_uint8(pictures), columns=len(columns))
