"""Whether generated images are copies: their nearest training images, beside those of held-out images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import from_uint8
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import is_first
from anysigma.machine.progress import progress
from anysigma.metrics.anchors import HELD_OUT, Anchor
from anysigma.metrics.fidelity import Features
from anysigma.metrics.vectors import cached_vectors, vectors
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import generated

TITLE = "Memorisation"
ABOUT = "The nearest training images of generated ones, beside those of held-out images."

AT_ONCE = 20_000_000  # distances, and numbers of vectors, that are held at once: 80 MB each
SUSPICIOUS = 0.01  # nearer than all but this share of held-out images
COPY = 1e-6  # the same image, but for rounding

Nearest = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Memorisation(Study):
    """Distances from `n` generated images to their nearest training images, in pixels and in features.

    The yardstick: the same for held-out images, at least 100 and at most as many as there are, which nobody can have
    memorised. `shown`: the nearest ones, drawn; `seed` names the noise, `block` images are computed at once; `cache`:
    where the training images' features are kept.
    """

    n: int
    shown: int
    seed: int
    block: int
    cache: str | None

    needs_features = True

    def __post_init__(self):
        if self.n < 1 or self.shown < 1:
            raise ValueError(f"n={self.n}, shown={self.shown}: at least 1 image is needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features, folder: Path) -> Result:
        """Make the images on all ranks, compare them on the first."""
        images = generated(model, sampler, self.n, seed=self.seed, block=self.block, folder=folder)
        card = {**model.card, **describe(sampler, model.denoiser.process.T), "seed": self.seed, "block": self.block}
        card |= {"data_hash": data.hash, "reference": f"{len(data.train)} training images", **features.card()}
        result = Result("memorisation", TITLE, ABOUT, card={**card, "n": self.n})
        if is_first():
            self.compare(result, images, data, features)
        return result

    def compare(self, result: Result, images: Tensor, data: Any, features: Features) -> None:
        """Figures and the picture for uint8 images `[n, C, H, W]`, wherever they come from."""
        held_out = data.held_out[: max(len(images), 100)]
        in_pixels = [nearest(pixels(some), data.train) for some in (images, held_out)]
        trained = own(cached_vectors(data.train, features, Path(self.cache) if self.cache else None), features)
        in_features = [nearest(own(vectors(some, features), features), trained) for some in (images, held_out)]
        found = {"pixels": in_pixels, f"{features.name} features": in_features}
        spaces = {space: compared(made[0], real[0]) for space, (made, real) in found.items()}
        report(result, spaces, len(images), len(held_out))
        first = in_features[0][0].argsort()[: self.shown]
        columns = [images[first], data.train[in_pixels[0][1][first]], data.train[in_features[0][1][first]]]
        result.pictures["memorisation"] = grid(torch.cat(columns), columns=len(first))
        result.captions["memorisation"] = (
            f"The {len(first)} generated images that lie nearest to a training image in features, the nearest first; below"
            f" each its nearest training image in pixels, and in {features.name} features."
        )


def own(found: Tensor, features: Features) -> Tensor:
    """Features without the logits that may follow them."""
    return found[:, : features.num_features]


def pixels(images: Tensor) -> Tensor:
    """uint8 images as vectors whose Euclidean distance is the root mean squared difference on [-1, 1]; `[N, d]`."""
    return from_uint8(images).flatten(1) / images[0].numel() ** 0.5


def nearest(x: Tensor, references: Tensor) -> Nearest:
    """Euclidean distance `[N]` from every row to its nearest reference, and that one's number `[N]`.

    References are rows too, or uint8 images, which become rows piece by piece: no array is larger than AT_ONCE. The
    products that find the nearest are off by about 1e-3 of the norms, so its distance is computed once more, from
    the difference: a copy is at 0.
    """
    size = max(1, AT_ONCE // max(len(x), x.shape[1]))
    best, index = x.new_full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long)
    pieces = references.split(size)
    for k, piece in enumerate(progress(pieces, len(pieces), "nearest images")):
        distance, at = torch.cdist(x, as_rows(piece)).min(1)
        index = torch.where(distance < best, at + k * size, index)
        best = torch.minimum(distance, best)
    few = max(1, AT_ONCE // x.shape[1])
    exact = [(some - as_rows(references[at])).norm(dim=1) for some, at in zip(x.split(few), index.split(few), strict=True)]
    return torch.cat(exact), index


def as_rows(references: Tensor) -> Tensor:
    """Images as `pixels`, rows as they are."""
    return pixels(references) if references.dtype == torch.uint8 else references


def compared(made: Tensor, real: Tensor) -> dict[str, float]:
    """Nearest distances of generated images beside those of held-out ones: quantiles, and the share that is too near."""
    limit, n = real.quantile(SUSPICIOUS), len(made)
    share = (made < limit).double().mean().item()
    return {
        "median": made.median().item(), "median_held_out": real.median().item(),
        "q05": made.quantile(0.05).item(), "q05_held_out": real.quantile(0.05).item(),
        "suspicious": share, "suspicious_error": (share * (1 - share) / n) ** 0.5,
        "copies": (made < COPY).double().mean().item(),
    }  # fmt: skip


def report(result: Result, spaces: dict[str, dict[str, float]], n: int, held_out: int) -> None:
    """Rows, a table and a line for each space."""
    columns = ["space", "median", "held-out", "5 % quantile", "held-out", "nearer than the held-out's 1 %", "copies"]
    rows = []
    for space, found in spaces.items():
        for metric, value, error, better, floor in (
            ("nearest_median", found["median"], None, 0, found["median_held_out"]),
            ("nearest_q05", found["q05"], None, 0, found["q05_held_out"]),
            ("suspiciously_near", found["suspicious"], found["suspicious_error"], -1, SUSPICIOUS),
            ("copies", found["copies"], None, -1, None),
        ):
            beside = {HELD_OUT: Anchor(floor)} if floor is not None else {}
            params = {"space": space, "held_out": held_out}
            result.rows.append(Row(metric, value, error, n, params, better, anchors=beside))
        names = ("median", "median_held_out", "q05", "q05_held_out")
        near = f"{100 * found['suspicious']:.1f} % ± {100 * found['suspicious_error']:.1f}"
        rows.append([space, *(f"{found[name]:.3f}" for name in names), near, f"{100 * found['copies']:.1f} %"])
        result.lines.append(f"{space}: {near} of the images suspiciously near to a training image (1 % if none is copied)")
    note = f"Distance to the nearest training image, of {n} generated and {held_out} held-out images."
    result.tables.append(Table("Nearest training images", columns, rows, note))
