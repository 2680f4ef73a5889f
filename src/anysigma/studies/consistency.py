"""One x_T at several numbers of steps: DDIM figure 5."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler
from anysigma.machine.distributed import is_first
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model
from anysigma.studies.variants import each_S, sampled, setting, variant

TITLE = "Consistency"
ABOUT = "The same x_T in few steps and in many: what the noise alone decides about an image."


@dataclass(frozen=True)
class Consistency:
    """How far an image at S steps is from that of the same x_T at the most steps, beside two unrelated images.

    Root mean squared difference on 0..255, mean over `n` images; `steps`: the S, those above T are left out; `etas`:
    η = 0 keeps the image (DDIM section 5.2), η = 1 shows that DDPM does not; `shown`: images in each picture; `seed`
    names the noise, `block` images are computed at once. Rank 0 computes it alone.
    """

    n: int
    steps: Sequence[int]
    etas: Sequence[float]
    shown: int
    seed: int
    block: int

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False

    def __post_init__(self):
        if self.n < 2 or not self.etas:
            raise ValueError(f"n={self.n}, etas={self.etas}: at least 2 images and one η are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Sample from the same x_T and compare. Raises ValueError for a sampler without a τ rule."""
        T = model.denoiser.process.T
        every = each_S(sampler, self.steps, T)
        card = {**model.card, **setting(variant(sampler, steps=1), T), "sigma": list(self.etas), "seed": self.seed}
        result = Result("consistency", TITLE, ABOUT, card=card | {"block": self.block, "scale": "0..255, rounded"})
        if not is_first():
            return result
        found = {}
        for eta in self.etas:
            made = {S: self._images(model, variant(sampler, eta=eta, steps=S)) for S in every}
            found[eta] = distances(made)
            self._show(result, eta, made)
        report(result, found, self.n)
        return result

    def _images(self, model: Model, sampler: Sampler) -> Tensor:
        return to_uint8(sampled(model, sampler, self.n, seed=self.seed, block=self.block))

    def _show(self, result: Result, eta: float, made: dict[int, Tensor]) -> None:
        name, columns = f"consistency_eta_{eta:g}", torch.stack([images[: self.shown] for images in made.values()], 1)
        result.pictures[name] = grid(columns.flatten(0, 1), columns=len(made))
        result.captions[name] = f"η = {eta:g}: a row is one x_T, the columns are S = {', '.join(map(str, made))}."


def distances(made: dict[int, Tensor]) -> dict[int | str, tuple[float, float | None]]:
    """At every S but the largest, and for "unrelated" images (each and the next): mean and standard error."""
    *fewer, most = made
    found = {S: mean_and_error(rmse(made[S], made[most])) for S in fewer}
    return {**found, "unrelated": mean_and_error(rmse(made[most], made[most].roll(1, 0)))}


def rmse(one: Tensor, other: Tensor) -> Tensor:
    """Root mean squared difference of uint8 images `[B, C, H, W]`, on 0..255: `[B]`."""
    return (one.double() - other.double()).square().flatten(1).mean(1).sqrt()


def report(result: Result, found: dict[float, dict[int | str, tuple[float, float | None]]], n: int) -> None:
    """Rows, table, plot and a line an η."""
    for eta, values in found.items():
        for at, (value, error) in values.items():
            params = {"eta": eta, **({"S": at} if at != "unrelated" else {})}
            metric = "rmse_unrelated" if at == "unrelated" else "rmse_same_x_T"
            result.rows.append(Row(metric, value, error, n, params))
        S, (value, error) = next(iter(values.items()))
        if S != "unrelated":
            apart = values["unrelated"][0]
            result.lines.append(
                f"η = {eta:g}: at S = {S} an image moved by {value:.1f}; unrelated images are {apart:.1f} apart"
            )
    columns = ["η", *(f"S = {at}" if at != "unrelated" else at for at in next(iter(found.values())))]
    rows = [[f"{eta:g}", *(f"{v:.1f} ± {e:.1f}" for v, e in values.values())] for eta, values in found.items()]
    note = "root mean squared difference on 0..255 to the image at the largest S from the same x_T, ± standard error"
    result.tables.append(Table("Consistency (DDIM figure 5)", columns, rows, note))
    result.plots["consistency_rmse"] = plot(found)


def plot(found: dict[float, dict[int | str, tuple[float, float | None]]]) -> Plot:
    """Difference against S for every η, with unrelated images as dashed lines."""
    curves = []
    for eta, values in found.items():
        S = [at for at in values if at != "unrelated"]
        curves.append(Curve(f"η = {eta:g}", S, [values[at][0] for at in S], [values[at][1] or 0.0 for at in S]))
    S, (apart, _) = [at for at in values if at != "unrelated"], values["unrelated"]
    curves.append(Curve("unrelated images", S, [apart] * len(S), style="--"))
    caption = "How far images at S steps are from those of the same x_T at the most steps."
    return Plot(caption, "S", "root mean squared difference, 0..255", curves, log_x=True)
