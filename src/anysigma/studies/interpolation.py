"""Images between images: spherical interpolation of x_T, DDIM section 5.3."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import is_first
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row
from anysigma.studies.base import CannotServe, Model, Study
from anysigma.studies.consistency import rmse
from anysigma.studies.lineup import without_noise

TITLE = "Interpolation"
ABOUT = "Between two noises on the great circle through them: x_T moves, the image follows."

# Below this sine two noises lie on one line and span no circle.
ON_A_LINE = 1e-6


@dataclass(frozen=True)
class Interpolation(Study):
    """x_0 without noise from `columns` points on the arc between the noises of images 2k and 2k+1, for `rows` pairs.

    `seed` names the noises, `block` images are computed at once. Of the sampler all is kept but its η, which is set to
    0, since added noise would give every point an image of its own. Rank 0 computes it alone.
    """

    rows: int
    columns: int
    seed: int
    block: int

    def __post_init__(self):
        if self.rows < 1 or self.columns < 3:
            raise ValueError(f"rows={self.rows}, columns={self.columns}: at least 1 row and 3 columns are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Draw the rows, and measure how evenly the image changes along them. Raises CannotServe where noise is drawn."""
        quiet = without_noise(sampler)
        card = {**model.card, **describe(quiet, model.denoiser.process.T), "seed": self.seed}
        card |= {"columns": self.columns, "block": self.block}
        result = Result("interpolation", TITLE, ABOUT, card=card)
        if not is_first():
            return result
        if quiet != sampler:
            result.lines.append("the sampler adds noise, which is no interpolation: drawn with η = 0")
        images = torch.cat([to_uint8(x_0).cpu() for x_0 in self._images(model, quiet)])
        result.pictures["interpolation"] = grid(images, columns=self.columns)
        result.captions["interpolation"] = "The images at both ends of a row, and those of the noises between theirs."
        report(result, images.unflatten(0, (self.rows, self.columns)))
        result.arrays["interpolation"] = {"images": images.unflatten(0, (self.rows, self.columns)).numpy()}
        return result

    @torch.inference_mode()
    def _images(self, model: Model, quiet: Sampler) -> Iterator[Tensor]:
        ends = ImageNoise(range(2 * self.rows), model.shape, self.seed)().unflatten(0, (self.rows, 2))
        x_T = torch.cat([slerp(first, last, torch.linspace(0, 1, self.columns)) for first, last in ends])
        for block in x_T.to(model.denoiser.device).split(self.block):
            yield quiet(model.denoiser, block, refuse)


def refuse() -> Tensor:
    """The noise of a sampler that must not draw any."""
    raise CannotServe("the sampler adds noise, and then the images between two others are none of theirs; use sampler=ddim")


def slerp(first: Tensor, last: Tensor, a: Tensor) -> Tensor:
    """sin((1-a)θ)/sin θ · first + sin(aθ)/sin θ · last, θ the angle between them: DDIM appendix D.5, Shoemake 1985.

    `[*shape]` twice and a `[N]` in [0, 1] → `[N, *shape]`, first at a = 0, last at a = 1. Unlike the straight line it
    keeps the norm that N(0, I) has. Two noises on one line span no circle and are joined by that line.
    """
    x, y = first.double().flatten(), last.double().flatten()
    a = a.double()[:, None]
    cosine = (x @ y / (x.norm() * y.norm()).clamp(min=1e-300)).clamp(-1, 1)
    theta = math.acos(cosine)
    if math.sin(theta) < ON_A_LINE:
        between = (1 - a) * x + a * y
    else:
        between = (((1 - a) * theta).sin() * x + (a * theta).sin() * y) / math.sin(theta)
    return between.to(first.dtype).reshape(-1, *first.shape)


def report(result: Result, images: Tensor) -> None:
    """Rows and a line: neighbours' and ends' difference, uint8 `[rows, columns, C, H, W]`, root mean square on 0..255."""
    steps = torch.stack([rmse(row[1:], row[:-1]) for row in images])
    ends = rmse(images[:, 0], images[:, -1])
    for metric, values in {"rmse_ends": ends, "rmse_neighbours": steps.mean(1), "rmse_largest_step": steps.amax(1)}.items():
        value, error = mean_and_error(values)
        result.rows.append(Row(metric, value, error, len(images), {"columns": images.shape[1]}))
    result.lines.append(
        f"interpolation: ends {ends.mean():.1f} apart on 0..255, neighbours {steps.mean():.1f},"
        f" the largest step of a row {steps.amax(1).mean():.1f}"
    )
