"""How far generated images are from real ones: the distance of one sampler, with its floor."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anysigma.data.images import ROUNDING
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import rank_and_world, say
from anysigma.metrics.card import versions
from anysigma.metrics.fidelity import Features, Measure, floor, measures
from anysigma.metrics.statistics import mean_and_error
from anysigma.metrics.vectors import cached_vectors, vectors
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import generated
from anysigma.studies.trajectory import strip

TITLE = "Fidelity"
ABOUT = "How far one sampler's images are from real ones, beside what as many real images reach."

GRID, AT_MOST = 64, 5000


@dataclass(frozen=True)
class Fidelity(Study):
    """The distance of `sets` disjoint sets of `n` generated images to the training images, mean and standard error.

    `n` null: as many as are held out, at most 5,000. `splits`: random splits of real images for the floor at the
    same n. `seed` names the noise, `block` images are computed at once. `save`: png, npz or null. `cache`: where the
    real images' features are kept. Also draws a grid and a trajectory.
    """

    n: int | None
    sets: int
    splits: int
    seed: int
    block: int
    save: str | None
    cache: str | None

    needs_features, draws_without = True, True

    def __post_init__(self):
        if self.save not in (None, "png", "npz"):
            raise ValueError(f"save={self.save}: png, npz or null")
        if self.sets < 1 or (self.n is not None and self.n < 2):
            raise ValueError(f"n={self.n}, sets={self.sets}: at least 2 images and 1 set are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features | None, folder: Path) -> Result:
        """Make the images, measure, draw. Raises ValueError where fewer than n real images are held out."""
        n = count(self.n, data, features)
        total = n * self.sets if features else max(GRID, n)
        images = generated(model, sampler, total, seed=self.seed, block=self.block, folder=folder)
        setting = describe(sampler, model.denoiser.process.T)
        result = Result("fidelity", TITLE, ABOUT, card={**model.card, **setting, "seed": self.seed, "block": self.block})
        if rank_and_world()[0] == 0:
            save(images, self.save, folder)
            result.pictures = {"grid": grid(images[:GRID]), "trajectory": strip(model, sampler, self.seed)}
            result.captions = {
                "grid": f"The first {min(GRID, len(images))} images.",
                "trajectory": "One image on its way: x_t above, the x_0 predicted from it below.",
            }
            if features:
                real = RealImages(data, features, self.cache)
                self._measure(result, images.split(n), real, setting)
        return result

    def _measure(self, result: Result, sets: tuple[Tensor, ...], real: "RealImages", setting: dict[str, Any]) -> None:
        base = real.floor(len(sets[0]), self.splits)
        result.rows = rows(sets, real, base, setting)
        result.card |= real.card(len(sets[0]), len(sets), self.splits)
        row, metric = result.rows[0], real.features.metric
        result.lines.append(
            f"{metric} {figure(row)} (floor {base['mean']:.2f} ± {base['sd']:.2f}:"
            f" {row.n} real images in place of the generated; {len(sets)} sets of {row.n})"
        )


class RealImages:
    """The real side of every figure: training images as the reference, all real images for the floor."""

    def __init__(self, data: Any, features: Features, cache: str | None):
        self.data, self.features, self._cache = data, features, Path(cache) if cache else None

    @cached_property
    def reference(self) -> Tensor:
        """Vectors of the training images."""
        return cached_vectors(self.data.train, self.features, self._cache)

    def floor(self, n: int, splits: int) -> dict[str, float]:
        """What a perfect model could reach at n images; one line where n is small beside the features' dimension."""
        if n <= self.features.num_features:
            say(
                f"warning: n={n} images in {self.features.num_features} features: the distance is biased upward,"
                " most where n is small; compare it with its floor alone"
            )
        held_out = cached_vectors(self.data.held_out, self.features, self._cache)
        return floor(torch.cat([self.reference, held_out]), n, splits, self.features)

    def measures(self, images: Tensor) -> dict[Measure, float]:
        """Every measure of one set of uint8 images."""
        return measures(vectors(images, self.features), self.reference, self.features)

    def card(self, n: int, sets: int, splits: int) -> dict[str, Any]:
        """The protocol that all figures against these images share."""
        return {
            "n": n, "sets": sets, "floor_splits": splits, "reference": f"{len(self.data.train)} training images",
            "prc_reference": f"{min(n, len(self.data.train))} of them", "data_hash": self.data.hash,
            "rounding": ROUNDING, **self.features.card(), "versions": versions(),
        }  # fmt: skip


def count(n: int | None, data: Any, features: Features | None) -> int:
    """Images a set: n, or as many as are held out; ValueError where the floor would lack real images."""
    n = n or min(len(data.held_out), AT_MOST)
    if features and n > len(data.held_out):
        raise ValueError(f"n={n}: the floor needs as many real images, and {len(data.held_out)} are held out")
    return n


def rows(sets: tuple[Tensor, ...], real: RealImages, base: dict[str, float], params: dict[str, Any]) -> list[Row]:
    """One row a measure over disjoint sets, the distance first, with its floor `base`."""
    n, found = len(sets[0]), []
    for measure, (value, error) in measured(sets, n, real).items():
        floors = {"floor": base["mean"], "floor_sd": base["sd"]} if measure.metric == real.features.metric else {}
        found.append(Row(value=value, error=error, n=n, params=params, **measure._asdict(), **floors))
    return found


def measured(sets: tuple[Tensor, ...], n_real: int, real: RealImages) -> dict[Measure, tuple[float, float | None]]:
    """Mean and standard error of every measure over disjoint sets; raises ValueError unless each has n_real images.

    The distance is biased upward by 1/n: beside a floor at another n it would mean nothing.
    """
    if wrong := [len(one) for one in sets if len(one) != n_real]:
        raise ValueError(f"a set of {wrong[0]} generated images cannot stand beside a floor at {n_real} real ones")
    found = [real.measures(one) for one in sets]
    return {measure: mean_and_error([one[measure] for one in found]) for measure in found[0]}


def figure(row: Row) -> str:
    """A value with its standard error."""
    return f"{row.value:.2f}" + (f" ± {row.error:.2f}" if row.error is not None else "")


def save(images: Tensor, form: str | None, folder: Path) -> None:
    """Nothing, images/<k>.png, or images.npz with `arr_0` uint8 `[n, H, W, C]` as the field's tools read it."""
    arrays = images.permute(0, 2, 3, 1).numpy()
    if form == "npz":
        np.savez(folder / "images.npz", arrays)
    if form == "png":
        if arrays.shape[3] not in (1, 3):
            raise ValueError(f"save=png takes 1 or 3 channels, these images have {arrays.shape[3]}; save=npz takes any")
        (folder / "images").mkdir(exist_ok=True)
        for k, array in enumerate(arrays.squeeze(3) if arrays.shape[3] == 1 else arrays):
            Image.fromarray(array).save(folder / "images" / f"{k:06d}.png")
