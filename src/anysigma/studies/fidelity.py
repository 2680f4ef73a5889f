"""How far generated images are from real ones: the distance of one sampler, with its floor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from anysigma.data.images import to_uint8
from anysigma.distributed import gathered, my_share, rank_and_world
from anysigma.metrics.card import versions
from anysigma.metrics.fidelity import Features, floor, mean_and_error, measures
from anysigma.noise import ImageNoise
from anysigma.pictures import grid
from anysigma.samplers.base import Sampler, generate
from anysigma.studies.base import Model, Result, describe

GRID, STRIP = 64, 10


@dataclass(frozen=True)
class Fidelity:
    """The distance of `sets` disjoint sets of `n` generated images to the training images, mean and standard error.

    `n` null: as many as are held out, at most 5,000. `splits`: random splits of real images for the floor at the
    same n. `seed` names the noise, `block` images are computed at once. `save`: png,
    npz or null. `cache`: where floors are kept. Also draws a grid and a trajectory.
    """

    n: int | None
    sets: int
    splits: int
    seed: int
    block: int
    save: str | None
    cache: str | None

    def __post_init__(self):
        if self.save not in (None, "png", "npz"):
            raise ValueError(f"save={self.save}: png, npz or null")
        if self.sets < 1 or (self.n is not None and self.n < 2):
            raise ValueError(f"n={self.n}, sets={self.sets}: at least 2 images and 1 set are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features | None, folder: Path) -> Result:
        """Make the images, measure, draw. Raises ValueError where fewer than n real images are held out."""
        n = self.n or min(len(data.held_out), 5000)
        if features and n > len(data.held_out):
            raise ValueError(f"n={n}: the floor needs as many real images, and {len(data.held_out)} are held out")
        images = self.generated(model, sampler, n * self.sets if features else max(GRID, n))
        T = model.denoiser.process.T
        result = Result([], {**model.card, **describe(sampler, T), "seed": self.seed, "block": self.block})
        if rank_and_world()[0] == 0:
            save(images, self.save, folder)
            result.pictures = {"grid": grid(images[:GRID]), "trajectory": strip(model, sampler, self.seed)}
            if features:
                self._measure(result, images.split(n), data, features)
        return result

    def generated(self, model: Model, sampler: Sampler, n: int) -> Tensor:
        """Images 0..n-1 as uint8 `[n, C, H, W]` on the CPU, every rank making its share; a line shows the progress."""
        ks = my_share(range(n), self.block)
        blocks = generate(model.denoiser, sampler, ks, model.shape, seed=self.seed, block=self.block)
        total = len({k // self.block for k in ks})
        made = track(blocks, "sampling", total=total, transient=True, disable=rank_and_world()[0] != 0)
        pieces = [to_uint8(x_0).cpu() for _, x_0 in made]
        empty = torch.empty(0, *model.shape, dtype=torch.uint8)
        return gathered(ks, torch.cat([empty, *pieces]))

    def _measure(self, result: Result, sets: tuple[Tensor, ...], data: Any, features: Features) -> None:
        n, real = len(sets[0]), torch.cat([data.train, data.held_out])
        base = floor(real, n, self.splits, features, Path(self.cache) if self.cache else None)
        params = {name: result.card[name] for name in ("sampler", "S", "sigma", "tau", "clip") if name in result.card}
        for metric, (value, error) in measured(sets, data.train, n, features).items():
            is_distance = metric == features.metric
            floors = {"floor": base["mean"] if is_distance else None, "floor_sd": base["sd"] if is_distance else None}
            row = {"study": "fidelity", "metric": metric, "value": value, "error": error, **floors, "n": n, "params": params}
            result.rows.append(row)
        result.card |= {
            "n": n, "sets": len(sets), "floor_splits": self.splits, "reference": f"{len(data.train)} training images",
            "data_hash": data.hash, "rounding": "x·127.5+127.5, to nearest", **features.card(), "versions": versions(),
        }  # fmt: skip
        row = result.rows[0]
        spread = f" ± {row['error']:.2f}" if row["error"] is not None else ""
        result.lines.append(
            f"{features.metric} {row['value']:.2f}{spread} (floor {base['mean']:.2f} ± {base['sd']:.2f}:"
            f" {n} real images in place of the generated; {len(sets)} sets of {n})"
        )


def measured(
    sets: tuple[Tensor, ...], reference: Tensor, n_real: int, features: Features
) -> dict[str, tuple[float, float | None]]:
    """Mean and standard error of every measure over disjoint sets; raises ValueError unless each has n_real images.

    The distance is biased upward by 1/n: beside a floor at another n it would mean nothing.
    """
    if wrong := [len(one) for one in sets if len(one) != n_real]:
        raise ValueError(f"a set of {wrong[0]} generated images cannot stand beside a floor at {n_real} real ones")
    found = [measures(one, reference, features) for one in sets]
    return {metric: mean_and_error([one[metric] for one in found]) for metric in found[0]}


@torch.inference_mode()
def strip(model: Model, sampler: Sampler, seed: int) -> np.ndarray:
    """One trajectory: x_t above, the x_0 predicted from it below, from x_T on the left to x_0 on the right."""
    device = next(model.denoiser.parameters()).device
    noise = ImageNoise(range(1), model.shape, seed, device)
    x_t, states, predictions = noise(), [], []
    for step in sampler.trajectory(model.denoiser, x_t, noise):
        states.append(x_t)
        predictions.append(step.x_0)
        x_t = step.x_s
    shown = sorted({round(i) for i in np.linspace(0, len(states) - 1, STRIP)})
    rows = [torch.cat([*(row[i] for i in shown), x_t]) for row in (states, predictions)]
    return grid(to_uint8(torch.cat(rows)).cpu(), columns=len(shown) + 1)


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


def pairs_of(result: Result) -> Iterator[tuple[str, float]]:
    """Every row as (name, value), for loggers."""
    return ((f"final/{row['metric']}", row["value"]) for row in result.rows)
