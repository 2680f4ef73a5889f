"""Whether a classifier tells generated images from real ones: a two-sample test."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anysigma.diffusion.noise import stream, stream_seed
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.progress import dealt
from anysigma.metrics.anchors import SECONDS, Anchor
from anysigma.metrics.card import versions
from anysigma.metrics.fidelity import Features, own
from anysigma.metrics.statistics import t_limit, wilson
from anysigma.metrics.vectors import cached_vectors, shared
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import generated
from anysigma.studies.likelihood import chosen

TITLE = "Two-sample test"
ABOUT = "How often a random forest tells generated images from held-out ones; where it cannot, half of the time."

AT_MOST = 2000  # images a side: five forests on twice as many of 3x32x32 take a minute or two
HALVES = "real halves"


@dataclass(frozen=True)
class TwoSample(Study):
    """How often a random forest of `trees` tells `n` generated images from as many held-out ones, Lopez-Paz & Oquab 2017.

    In pixels and, where there are any, in features; generated images are rounded to the data set's grey levels, which
    alone would give them away. Each image is judged by a forest grown on the other folds; accuracy is the mean over
    `repeats` cuts into `folds`. On the default run small forests on many cuts (25 trees, 6 cuts) stood 4.0 sd of the
    real halves above them, 100 trees on one cut 3.2, on one half that judges the other 2.0. Real halves: the same of 2n
    real images, training and held-out ones, cut in two at random, `splits` times or as often as five minutes allow.
    What all images share is seen (noise of sd 6 on 0..255, once rounded too), a few bad ones among many are not: 5 % of
    pure noise are found by `memorisation`, too far. `n` null: as many as are held out; never more than those or 2,000.
    `seed` names noise, folds, trees and draws; `block` images are computed at once; `cache`: where the real images'
    features are kept.
    """

    n: int | None
    folds: int
    repeats: int
    trees: int
    splits: int
    seed: int
    block: int
    cache: str | None

    needs_features, draws_without = True, True

    def __post_init__(self):
        if self.folds < 2 or min(self.repeats, self.trees) < 1 or self.splits < 2:
            raise ValueError(
                f"study.folds={self.folds}, study.repeats={self.repeats}, study.trees={self.trees},"
                f" study.splits={self.splits}: at least 2 folds, 1 repeat, 1 tree and 2 draws of real halves are needed"
            )
        if self.n is not None and self.n < self.folds:
            raise ValueError(f"n={self.n}: each of study.folds={self.folds} folds needs an image")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features | None, folder: Path) -> Result:
        """Make the images and test them, each rank some of the draws; for that every rank has them: they are few."""
        n = self.count(data)
        images = generated(model, sampler, n, seed=self.seed, block=self.block, folder=folder)
        card = {**model.card, **describe(sampler, model.denoiser.process.T), "seed": self.seed, "block": self.block}
        result = Result("two_sample", TITLE, ABOUT, card=card | self._card(data, n) | (features.card() if features else {}))
        self.compare(result, images.all(), data, features)
        return result

    def count(self, data: Any) -> int:
        """Images a side. Raises ValueError where too few are held out."""
        n = min(self.n or AT_MOST, AT_MOST, len(data.held_out), (len(data.held_out) + len(data.train)) // 2)
        if n < self.folds:
            raise ValueError(f"study.folds={self.folds}: each fold needs a held-out image, and there are {n}")
        return n

    def compare(self, result: Result, images: Tensor, data: Any, features: Features | None) -> None:
        """Figures, a table and lines for uint8 images `[n, C, H, W]`, wherever they come from; every rank calls it."""
        made, held_out = levelled(images, data.source.grey_levels), chosen(data.held_out, len(images), self.seed)
        spaces = {"pixels": (flat(made), flat(held_out), flat(torch.cat([data.train, data.held_out])))}
        if features:
            cache = Path(self.cache) if self.cache else None
            real = [cached_vectors(some, features, cache) for some in (data.train, data.held_out)]
            some = (shared(made, features), shared(held_out, features), torch.cat(real))
            spaces[f"{features.name} features"] = tuple(own(one, features).numpy() for one in some)
        for space, (a, b, real) in spaces.items():
            value = sum(dealt(partial(self._right, *both(a, b)), self.repeats, f"forests, {space}")) / self.repeats
            null = dealt(partial(self._halves, real, len(a)), self.splits, f"{HALVES}, {space}", SECONDS)
            result.rows.append(row(space, value, Anchor.of(null), len(a)))
            result.arrays.setdefault("two_sample", {})[f"{space.split()[-1]}_halves"] = np.array(null)
            result.lines.append(verdict(result.rows[-1], place(value, null)))
        result.tables.append(table(result.rows))

    def accuracy(self, a: np.ndarray, b: np.ndarray) -> float:
        """Share of the rows of both, `[n, d]` each, that a forest grown on the other folds takes for what they are."""
        return sum(self._right(*both(a, b), repeat) for repeat in range(self.repeats)) / self.repeats

    def _right(self, x: np.ndarray, y: np.ndarray, repeat: int) -> float:
        """The share of rows for one cut into folds."""
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        seed = stream_seed(self.seed, repeat, "forest") % 2**32
        forest = RandomForestClassifier(self.trees, random_state=seed, n_jobs=torch.get_num_threads())
        cut = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        return float((cross_val_predict(forest, x, y, cv=cut) == y).mean())

    def _halves(self, real: np.ndarray, n: int, split: int) -> float:
        """The same between n real images and n others, drawn anew for each split."""
        order = torch.randperm(len(real), generator=stream(self.seed, split, "halves")).numpy()
        return self.accuracy(real[order[:n]], real[order[n : 2 * n]])

    def _card(self, data: Any, n: int) -> dict[str, Any]:
        from sklearn import __version__

        return {
            "n": n, "folds": self.folds, "repeats": self.repeats, "trees": self.trees, "classifier": "random forest",
            "anchor_draws": self.splits, "reference": f"{n} of {len(data.held_out)} held-out images",
            "halves": f"of {len(data.train)} training images and {len(data.held_out)} held-out images",
            "interval": "Wilson over 2n images, as if they were judged one by one", "data_hash": data.hash,
            "grey_levels": data.source.grey_levels, "versions": versions() | {"scikit-learn": __version__},
        }  # fmt: skip


def both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both, and which they are of: 0 or 1."""
    return np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])


def levelled(images: Tensor, levels: int) -> Tensor:
    """uint8 images on the nearest of so many grey levels, spread evenly over 0..255 and rounded; 256: as they are."""
    step = 255 / (levels - 1)
    return ((images.double() / step).round() * step).round().to(torch.uint8)


def flat(images: Tensor) -> np.ndarray:
    """Pixels as rows, uint8 `[N, d]`."""
    return images.flatten(1).numpy()


def row(space: str, value: float, halves: Anchor, n: int) -> Row:
    """The accuracy over 2n images beside that between real halves."""
    facts = {"label": f"Told from real images, in {space}", "interval": wilson(value, 2 * n), "key": True}
    return Row("two_sample", value, None, n, {"space": space}, better=-1, anchors={HALVES: halves}, **facts)


def place(value: float, null: list[float]) -> float:
    """(1 + those of the null that are no smaller)/(1 + all of them): a p-value, never below 1/(1 + draws)."""
    return (1 + sum(one >= value for one in null)) / (1 + len(null))


def most(halves: Anchor) -> float:
    """What one more pair of real halves stays below with 97.5 %, by Student's t; below its mirror image with 2.5 %."""
    return halves.value + t_limit(halves.draws - 1) * halves.sd * (1 + 1 / halves.draws) ** 0.5


def verdict(row: Row, p: float) -> str:
    """What a row says, in a line."""
    halves = row.anchors[HALVES]
    said = "told from real ones" if row.value > most(halves) else "not told from real ones"
    least = 1 / (1 + halves.draws)
    of_them = f"p = {p:.2g}" if p > least * 1.01 else f"p ≤ {least:.2g}, the least that these draws can show"
    return (
        f"{row.params['space']}: {said}: a forest is right on {100 * row.value:.1f} % of {2 * row.n} images, on"
        f" {100 * halves.value:.1f} ± {100 * halves.sd:.1f} between real halves ({halves.draws} draws, {of_them})"
    )


def table(rows: Sequence[Row]) -> Table:
    """Accuracies as a person reads them."""
    body = []
    for one in rows:
        (low, high), halves = one.interval, one.anchors[HALVES]
        shares = (one.value, low, high, halves.value, halves.sd, most(halves))
        value, low, high, *beside = (f"{100 * share:.1f}" for share in shares)
        body.append([one.params["space"], f"{value} ({low} to {high})", *beside, str(halves.draws)])
    columns = ("space", "right, %", HALVES, "sd of one", "at most", "draws")
    note = (
        "Share of all images taken for what they are, each by a forest that has not seen it, with a 95 % interval as if they"
        " were judged independently; forests share images, so that the spread of real halves is what to hold it against:"
        ' one more pair of them lies below "at most" with 97.5 %.'
    )
    return Table("Generated or real?", columns, body, note)
