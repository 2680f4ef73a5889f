"""Whether generated images are copies: their nearest training images, beside those of held-out images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from anysigma.distributed import is_first
from anysigma.metrics.fidelity import Features
from anysigma.metrics.vectors import cached_vectors, vectors
from anysigma.pictures import grid
from anysigma.progress import progress
from anysigma.samplers.base import Sampler
from anysigma.studies.base import Model, Result, Table, describe
from anysigma.studies.generated import generated

# Rows of the two sides that are compared at once: 1,000 x 2,000 distances, and 2,000 CIFAR images are 25 MB.
ROWS, REFERENCES = 1000, 2000
SUSPICIOUS = 0.01  # nearer than all but this share of held-out images


class Nearest(NamedTuple):
    """Distance `[N]` to the nearest reference and its number `[N]`."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True)
class Memorisation:
    """Distances from `n` generated images to their nearest training images, in pixels and in features.

    The yardstick: the same for as many held-out images, which nobody can have memorised. `shown`: the most suspicious,
    drawn with their nearest; `seed` names the noise, `block` images are computed at once; `cache`: where the training
    images' features are kept.
    """

    n: int
    shown: int
    seed: int
    block: int
    cache: str | None

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def __post_init__(self):
        if self.n < 1 or self.shown < 1:
            raise ValueError(f"n={self.n}, shown={self.shown}: at least 1 image is needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features, folder: Path) -> Result:
        """Make the images on all ranks, compare them on the first."""
        images = generated(model, sampler, self.n, seed=self.seed, block=self.block, folder=folder)
        card = {**model.card, **describe(sampler, model.denoiser.process.T), "seed": self.seed, "block": self.block}
        card |= {"data_hash": data.hash, "reference": f"{len(data.train)} training images", **features.card()}
        result = Result("memorisation", card=card)
        if is_first():
            self.compare(result, images, data, features)
        return result

    def compare(self, result: Result, images: Tensor, data: Any, features: Features) -> None:
        """Figures and the picture for uint8 images `[n, C, H, W]`, wherever they come from."""
        held_out = data.held_out[: max(self.n, 100)]
        found = {"pixels": [], "features": []}
        of_train = own(cached_vectors(data.train, features, Path(self.cache) if self.cache else None), features)
        for some in (images, held_out):
            found["pixels"].append(nearest(some, data.train, pixels))
            found["features"].append(nearest(own(vectors(some, features), features), of_train, lambda x: x))
        report(result, found)
        first = found["features"][0].distance.argsort()[: self.shown]
        columns = [images[first], *(data.train[found[space][0].index[first]] for space in found)]
        result.pictures["memorisation"] = grid(torch.stack(columns).flatten(0, 1), columns=len(first))
        result.captions["memorisation"] = (
            "The generated images nearest to the training images in features, the most suspicious first;"
            " below each its nearest training image in pixels, and in features."
        )


def own(found: Tensor, features: Features) -> Tensor:
    """Features without the logits that may follow them."""
    return found[:, : features.num_features]


def pixels(images: Tensor) -> Tensor:
    """uint8 images as vectors whose Euclidean distance is the root mean squared difference on 0..255."""
    return images.flatten(1).float() / images[0].numel() ** 0.5


def nearest(x: Tensor, references: Tensor, as_vectors: Callable[[Tensor], Tensor]) -> Nearest:
    """The nearest reference of every x, Euclidean, piece by piece; the distance found is then computed without rounding.

    The products that make it fast are off by about 1e-3 of the norms, so a copy would not be at 0.
    """
    pieces = x.split(ROWS)
    parts = [_nearest(as_vectors(one), references, as_vectors) for one in progress(pieces, len(pieces), "nearest images")]
    return Nearest(*map(torch.cat, zip(*parts, strict=True)))


def _nearest(x: Tensor, references: Tensor, as_vectors: Callable[[Tensor], Tensor]) -> Nearest:
    best, index = x.new_full((len(x),), torch.inf), torch.zeros(len(x), dtype=torch.long)
    for k, piece in enumerate(references.split(REFERENCES)):
        distance, at = torch.cdist(x, as_vectors(piece)).min(1)
        index = torch.where(distance < best, at + k * REFERENCES, index)
        best = torch.minimum(distance, best)
    return Nearest((x - as_vectors(references[index])).norm(dim=1), index)


def report(result: Result, found: dict[str, list[Nearest]]) -> None:
    """Rows, table and lines: generated beside held-out images, in each space."""
    rows = []
    for space, (made, real) in found.items():
        limit = real.distance.quantile(SUSPICIOUS)
        share, n = (made.distance < limit).double().mean().item(), len(made.distance)
        figures = {"nearest_median": 0.5, "nearest_5_percent": 0.05}
        values = {
            name: (made.distance.quantile(at).item(), real.distance.quantile(at).item()) for name, at in figures.items()
        }
        values["suspicious_share"] = (share, SUSPICIOUS)
        for metric, (value, floor) in values.items():
            error = (share * (1 - share) / n) ** 0.5 if metric == "suspicious_share" else None
            row = {"study": "memorisation", "metric": f"{metric}_{space}", "value": value, "error": error, "floor": floor}
            result.rows.append({**row, "n": n, "params": {"space": space, "held_out": len(real.distance)}})
            rows.append([space, metric.replace("_", " "), f"{value:.4g}", f"{floor:.4g}"])
        result.lines.append(
            f"{space}: {100 * share:.1f} % of the generated images are nearer to a training image than"
            f" {100 - 100 * SUSPICIOUS:.0f} % of the held-out ones are (1 % would be, if nothing were copied)"
        )
    note = "distance to the nearest training image: root mean square on 0..255 in pixels, Euclidean in features"
    result.tables.append(Table("Memorisation", ["space", "what", "generated", "held out"], rows, note))
