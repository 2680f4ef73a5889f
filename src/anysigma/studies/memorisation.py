"""Whether generated images are copies, or like nothing: their nearest training images, beside those of held-out images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from anysigma.data.images import from_uint8
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import gathered
from anysigma.machine.progress import progress
from anysigma.metrics.anchors import HELD_OUT, Anchor
from anysigma.metrics.fidelity import Features, own
from anysigma.metrics.statistics import wilson
from anysigma.metrics.vectors import cached_vectors, vectors
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import Images, generated

TITLE = "Memorisation"
ABOUT = "How near generated images are to training images, over shifts of a pixel and flips, beside held-out images."

AT_ONCE = 20_000_000  # distances, and numbers of vectors, that are held at once: 80 MB each
TAIL = 0.01  # too near, too far: beyond about this share of the held-out images
SHIFTED = 4  # pixels: a direction of fewer is not shifted
SEARCH = "the nearest of 18 views: shifts by up to a pixel (in pixels what overlaps), mirrored or not"
COPY = 1e-6  # the same image, but for rounding

Nearest = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Memorisation(Study):
    """Distances from `n` generated images to their nearest training images, in pixels and in features.

    The nearest over 18 views: shifts by up to a pixel in every direction, mirrored left to right or not. The yardstick:
    the same for held-out images, at least 100 and at most as many as there are, which nobody can have memorised. Too
    near (a copy) is nearer than the held-out images' 1 % quantile, too far (no image of this kind) farther than their
    99 %. `shown`: the nearest ones, drawn; `seed` names the noise, `block` images are computed at once; `cache`: where
    the training images' features are kept.

    The cost: 36 · (n + held-out) · training images · pixels operations and 18 (n + held-out) feature vectors. n = 360
    against 50,000 images of 3x32x32 took three minutes on one core in pixels, and 1.6 GB.
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
        """Make the images and compare them, each rank its own."""
        images = generated(model, sampler, self.n, seed=self.seed, block=self.block, folder=folder)
        card = {**model.card, **describe(sampler, model.denoiser.process.T), "seed": self.seed, "block": self.block}
        card |= {"data_hash": data.hash, "reference": f"{len(data.train)} training images", **features.card()}
        card |= {"n": self.n, "search": SEARCH}
        result = Result("memorisation", TITLE, ABOUT, card=card)
        self.compare(result, images, data, features)
        return result

    def compare(self, result: Result, images: Images, data: Any, features: Features) -> None:
        """Figures and the picture for images, wherever they come from; every rank calls it."""
        held_out = Images.shared(data.held_out[: max(images.n, 100)])
        trained = own(cached_vectors(data.train, features, Path(self.cache) if self.cache else None), features)
        pixels_of = [of_all(some, partial(in_pixels, train=data.train)) for some in (images, held_out)]
        search = partial(in_features, trained=trained, features=features)
        features_of = [of_all(some, search) for some in (images, held_out)]
        spaces = {"pixels": pixels_of, f"{features.name} features": features_of}
        report(result, {space: [distance for distance, _ in both] for space, both in spaces.items()})
        first = features_of[0][0].argsort()[: self.shown]
        columns = [images.some(first.tolist()), data.train[pixels_of[0][1][first]], data.train[features_of[0][1][first]]]
        result.pictures["memorisation"] = grid(torch.cat(columns), columns=len(first))
        result.captions["memorisation"] = (
            f"The {len(first)} generated images that lie nearest to a training image in features, the nearest first; below"
            f" each its nearest training image in pixels, and in {features.name} features."
        )


def views(shape: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """(down, right, mirrored): shifts by up to one pixel of images `[…, H, W]`; directions under 4 pixels stay."""
    down, right = ((-1, 0, 1) if size >= SHIFTED else (0,) for size in shape[-2:])
    yield from product(down, right, (False, True))


def of_all(images: Images, search: Callable[[Tensor], Nearest]) -> Nearest:
    """What the search finds for all of them, on every rank, each searching for its own."""
    distance, index = search(images.mine) if images.ks else (torch.empty(0), torch.empty(0))
    return gathered(images.ks, distance), gathered(images.ks, index)


def in_pixels(images: Tensor, train: Tensor) -> Nearest:
    """Root mean squared difference on [-1, 1] to the nearest training image under any view, and its number, both `[n]`.

    Of a shifted pair what overlaps is compared: a copy that moved is at 0, whatever filled the border it left.
    """
    found = []
    for down, right, mirrored in views(images.shape):
        seen = images.flip(-1) if mirrored else images
        found.append(nearest(pixels(overlap(seen, down, right)), overlap(train, -down, -right)))
    return least(found)


def in_features(images: Tensor, trained: Tensor, features: Features) -> Nearest:
    """Distance to the nearest training vector of any view of the image, its border repeated where it was shifted."""
    found = []
    for down, right, mirrored in views(images.shape):
        seen = shifted(images.flip(-1) if mirrored else images, down, right)
        found.append(nearest(own(vectors(seen, features), features), trained))
    return least(found)


def least(found: Sequence[Nearest]) -> Nearest:
    """The nearest of several searches, image by image."""
    distance, index = (torch.stack(each) for each in zip(*found, strict=True))
    best, at = distance.min(0)
    return best, index.gather(0, at[None])[0]


def overlap(images: Tensor, down: int, right: int) -> Tensor:
    """What is left of `[…, H, W]` without its first `down` rows and `right` columns; negative: the last."""
    H, W = images.shape[-2:]
    return images[..., max(down, 0) : H + min(down, 0), max(right, 0) : W + min(right, 0)]


def shifted(images: Tensor, down: int, right: int) -> Tensor:
    """Moved down and to the right by so many pixels, the border repeated."""
    H, W = images.shape[-2:]
    rows, columns = (torch.arange(H) - down).clamp(0, H - 1), (torch.arange(W) - right).clamp(0, W - 1)
    return images[..., rows, :][..., columns]


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


@dataclass(frozen=True)
class Tails:
    """Shares of generated images beyond the k-th nearest and the k-th farthest of m held-out ones, k about m/100.

    Were the generated images drawn from the held-out images' law, the share on either side would be k/(m+1) on average,
    for any law; `sd` is that of the beta-binomial which it then follows, both samples being drawn.
    """

    near: float
    far: float
    expected: float
    sd: float

    @classmethod
    def of(cls, made: Tensor, real: Tensor) -> Self:
        """From nearest distances, `[n]` and `[m]`."""
        n, m, ordered = len(made), len(real), real.sort().values
        k = max(1, round(TAIL * (m + 1)))
        p = k / (m + 1)
        near, far = (beyond.double().mean().item() for beyond in (made < ordered[k - 1], made > ordered[m - k]))
        return cls(near, far, p, (p * (1 - p) / n * (n + m + 1) / (m + 2)) ** 0.5)


def report(result: Result, spaces: dict[str, list[Tensor]]) -> None:
    """Rows, a table, a line and what they are made of, for each space, from nearest distances of generated and held-out."""
    body, kept = [], {}
    for space, (made, real) in spaces.items():
        tails = Tails.of(made, real)
        result.rows += rows(made, real, tails, {"space": space, "held_out": len(real)})
        copies = (made < COPY).double().mean().item()
        near, far, same = (share(one, len(made)) for one in (tails.near, tails.far, copies))
        expected = f"{100 * tails.expected:.1f} % ± {100 * tails.sd:.1f}"
        quantiles = [f"{some.quantile(q).item():.3f}" for q in (0.5, 0.05) for some in (made, real)]
        body.append([space, *quantiles, near, far, expected, same])
        result.lines.append(f"{space}: {near} too near to a training image, {far} too far; held-out images: {expected};"
                            f" copies: {same}")  # fmt: skip
        kept |= {f"{space.split()[-1]}_{side}": some.numpy() for side, some in (("made", made), ("held_out", real))}
    result.arrays["memorisation"] = kept
    columns = [
        "space",
        "median",
        "held-out",
        "5 % quantile",
        "held-out",
        "too near",
        "too far",
        "expected of either",
        "copies",
    ]
    note = (
        f"Distance to the nearest training image of {len(made)} generated and {len(real)} held-out images, over shifts of a"
        f" pixel and flips. Too near, too far: beyond about 1 % of the held-out images, with a 95 % interval (Wilson);"
        f" expected: of as many images that nobody memorised, ± the sd of such a draw."
    )
    result.tables.append(Table("Nearest training images", columns, body, note))


def rows(made: Tensor, real: Tensor, tails: Tails, params: dict[str, Any]) -> list[Row]:
    """The figures of one space: distances beside the held-out images', shares beside what is expected of these."""
    n, found = len(made), []
    for metric, q in (("nearest_median", 0.5), ("nearest_q05", 0.05)):
        anchors = {HELD_OUT: Anchor(real.quantile(q).item())}
        found.append(Row(metric, made.quantile(q).item(), None, n, params, anchors=anchors))
    expected, copies = {HELD_OUT: Anchor(tails.expected, tails.sd)}, (made < COPY).double().mean().item()
    shares = (("too_near", tails.near, expected, 0), ("too_far", tails.far, expected, 0), ("copies", copies, {}, -1))
    for metric, value, anchors, better in shares:  # too few are no better than too many
        found.append(Row(metric, value, None, n, params, better, interval=wilson(value, n), anchors=anchors))
    return found


def share(value: float, n: int) -> str:
    """A share of n images with its 95 % interval."""
    low, high = wilson(value, n)
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
