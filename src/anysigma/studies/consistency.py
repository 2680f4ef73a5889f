"""One x_T at several numbers of steps: DDIM figure 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import sampled
from anysigma.studies.lineup import at_S, each_S, labels, lineup

TITLE = "Consistency"
ABOUT = "The same x_T in few steps and in many: what the noise alone decides about an image."

Distances = dict[int | str, tuple[float, float | None]]  # by S, and of "unrelated" images: mean and standard error


@dataclass(frozen=True)
class Consistency(Study):
    """How far an image at S steps is from that of the same x_T at the most steps, beside two unrelated images.

    Root mean squared difference on 0..255, mean over `n` images; `steps`: the S, those above T are left out; `samplers`
    by name, with the given one: η = 0 keeps the image (DDIM section 5.2), η = 1 shows that DDPM does not; `shown`: images
    in each picture; `seed` names the noise, `block` images are computed at once. Every rank makes its share.
    """

    n: int
    steps: Sequence[int]
    samplers: Mapping[str, Sampler]
    shown: int
    seed: int
    block: int

    def __post_init__(self):
        if self.n < 2:
            raise ValueError(f"n={self.n}: at least 2 images are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Sample from the same x_T and compare. Raises CannotServe for a sampler without a τ rule."""
        T, every = model.denoiser.process.T, lineup(self.samplers, sampler)
        Ss = {name: each_S(one, self.steps, T) for name, one in every.items()}
        known = labels([at_S(one, 1) for one in every.values()], T)
        card = {**model.card, "n": self.n, "seed": self.seed, "block": self.block, "scale": "0..255, rounded"}
        result = Result("consistency", TITLE, ABOUT, card=card)
        found, kept = {}, {}
        for (name, one), label in zip(every.items(), known, strict=True):
            made = {S: self._images(model, at_S(one, S)) for S in Ss[name]}
            apart = differences(made)
            found[label] = {at: mean_and_error(values) for at, values in apart.items()}
            kept |= {f"{name}_{at}": values.numpy() for at, values in apart.items()}
            self._show(result, name, label, made)
            result.rows += figures(found[label], {S: describe(at_S(one, S), T) for S in made}, self.n)
        report(result, found)
        result.arrays["consistency"] = kept
        return result

    def _images(self, model: Model, sampler: Sampler) -> Tensor:
        return to_uint8(sampled(model, sampler, self.n, seed=self.seed, block=self.block))

    def _show(self, result: Result, name: str, label: str, made: dict[int, Tensor]) -> None:
        columns = torch.stack([images[: self.shown] for images in made.values()], 1)
        result.pictures[f"consistency_{name}"] = grid(columns.flatten(0, 1), columns=len(made))
        result.captions[f"consistency_{name}"] = (
            f"{label}: a row is one x_T, the columns are S = {', '.join(map(str, made))}."
        )


def differences(made: dict[int, Tensor]) -> dict[int | str, Tensor]:
    """Of every image, at every S but the largest, and for "unrelated" images (each and the next): `[n]`."""
    *fewer, most = made
    found = {S: rmse(made[S], made[most]) for S in fewer}
    return {**found, "unrelated": rmse(made[most], made[most].roll(1, 0))}


def rmse(one: Tensor, other: Tensor) -> Tensor:
    """Root mean squared difference of uint8 images `[B, C, H, W]`, on 0..255: `[B]`."""
    return (one.double() - other.double()).square().flatten(1).mean(1).sqrt()


def figures(values: Distances, settings: Mapping[int, dict[str, Any]], n: int) -> list[Row]:
    """One sampler's rows: at every S but the largest, and of unrelated images at the largest."""
    *_, most = settings
    metrics = {at: "rmse_unrelated" if at == "unrelated" else "rmse_same_x_T" for at in values}
    of = {at: settings[most if at == "unrelated" else at] for at in values}
    return [Row(metrics[at], value, error, n, of[at], card=of[at]) for at, (value, error) in values.items()]


def report(result: Result, found: dict[str, Distances]) -> None:
    """Table, plot and a line a sampler."""
    for label, values in found.items():
        S, (value, _) = next(iter(values.items()))
        if S != "unrelated":
            apart = values["unrelated"][0]
            result.lines.append(f"{label}: at S = {S} an image moved by {value:.1f}; unrelated images are {apart:.1f} apart")
    columns = ["sampler", *(f"S = {at}" if at != "unrelated" else at for at in next(iter(found.values())))]
    rows = [[label, *(f"{v:.1f} ± {e:.1f}" for v, e in values.values())] for label, values in found.items()]
    note = "root mean squared difference on 0..255 to the image at the largest S from the same x_T, ± standard error"
    result.tables.append(Table("Consistency (DDIM figure 5)", columns, rows, note))
    result.plots["consistency_rmse"] = plot(found)


def plot(found: dict[str, Distances]) -> Plot:
    """Difference against S for every sampler, with unrelated images as dashed lines."""
    curves = []
    for label, values in found.items():
        S = [at for at in values if at != "unrelated"]
        curves.append(Curve(label, S, [values[at][0] for at in S], [values[at][1] or 0.0 for at in S]))
    S, (apart, _) = [at for at in values if at != "unrelated"], values["unrelated"]
    curves.append(Curve("unrelated images", S, [apart] * len(S), style="--"))
    caption = "How far images at S steps are from those of the same x_T at the most steps."
    return Plot(caption, "S", "root mean squared difference, 0..255", curves, log_x=True)
