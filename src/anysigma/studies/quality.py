"""How far generated images are from real ones: the distance of one sampler, beside what real images give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from anysigma.data.images import ROUNDING, image_hash
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import is_first, say
from anysigma.machine.progress import dealt
from anysigma.metrics.anchors import TRAINING, Anchors, anchors, draws_of, kept, to_held_out
from anysigma.metrics.card import versions
from anysigma.metrics.fidelity import INCEPTION_SPLITS, Features, Measure, at_most, frechet, measures, own, the_distance
from anysigma.metrics.frechet import Moments, NoLimit, extrapolated
from anysigma.metrics.statistics import mean_and_error, t_limit
from anysigma.metrics.vectors import cached_vectors
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import cost, generated
from anysigma.studies.saving import save
from anysigma.studies.sets import fewer, sets_of
from anysigma.studies.trajectory import strip

TITLE = "Fidelity"
ABOUT = "How far one sampler's images are from real ones, beside what as many real images give in their place."

GRID, AT_MOST = 64, 5000


@dataclass(frozen=True)
class Fidelity(Study):
    """The distance of `sets` disjoint sets of `n` generated images to the training images, mean and standard error.

    `n` null: as many as are held out, at most 5,000. `sets` null: 5, fewer where the sampler asks the network more than
    100 times an image (`sets_of`). `splits`: draws of n real images, for the anchors beside it.
    `seed` names the noise, `block` images are computed at once. `save`: png, npz or null. `cache`: where the
    real images' features and anchors are kept. Also draws a grid and a trajectory.
    """

    n: int | None
    sets: int | None
    splits: int
    seed: int
    block: int
    save: str | None
    cache: str | None

    needs_features, draws_without = True, True

    def __post_init__(self):
        if self.save not in (None, "png", "npz"):
            raise ValueError(f"save={self.save}: png, npz or null")
        held_to_counts(self.n, self.sets, self.splits)

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features | None, folder: Path) -> Result:
        """Say what it will cost, make the images, measure, draw."""
        n, evaluations = count(self.n, data), sampler.evaluations(model.denoiser.process.T)
        sets = sets_of(self.sets, evaluations)
        total = n * sets if features else max(GRID, n)
        say(cost(model, [sampler], total, self.block, f"{sets} sets of {n} images" if features else f"{total} images"))
        images = generated(model, sampler, total, seed=self.seed, block=self.block, folder=folder)
        setting = describe(sampler, model.denoiser.process.T)
        result = Result("fidelity", TITLE, ABOUT, card={**model.card, **setting, "seed": self.seed, "block": self.block})
        save(images, self.save, folder)
        first = images.some(range(min(GRID, total)))
        if features:
            real = RealImages(data, features, n, self.splits, self.cache)
            found = real.sets(images.vectors(features))
            distance, *others = real.rows(found, setting)
            result.rows = [replace(distance, key=True), real.limit(found, setting), *others]
            result.card |= real.card(sets) | fewer(self.sets, evaluations)
            result.lines = headline(result.rows, features.metric, result.card.get("fewer_sets", ""))
        if is_first():
            result.pictures = {"grid": grid(first), "trajectory": strip(model, sampler, self.seed)}
            result.captions = {
                "grid": f"The first {len(first)} images.",
                "trajectory": "One image on its way: x_t above, the x_0 predicted from it below.",
            }
        return result


def headline(rows: Sequence[Row], metric: str, why: str = "") -> list[str]:
    """The distance with its interval, and why of few sets; its anchors; to held-out images and to infinitely many."""
    by = {row.metric: row for row in rows}
    first = by[metric]
    sets = f"{len(first.sets)} sets of {first.n} images to the training images"
    lines = [f"{metric} {figure(first)}, {sets}{interval(first)}{f'; {why}' if why else ''}"]
    lines.append(f"at {first.n} images: {first.beside}")
    if other := by.get(f"{metric}_held_out"):
        lines.append(f"to {other.n} held-out images: {figure(other)} ({other.beside})")
    if limit := by.get(f"{metric}_infinite"):
        what = f"not given: {limit.card['no_limit']}" if limit.value is None else figure(limit) + interval(limit)
        beside = f" ({limit.beside})" if limit.anchors else ""
        lines.append(f"extrapolated to infinitely many images, the reference as it is: {what}{beside}")
    return lines


def interval(row: Row) -> str:
    """; 95 %: low to high, by Student's t over the sets."""
    if row.error is None:
        return ""
    half = t_limit(len(row.sets) - 1) * row.error
    return f"; 95 %: {row.value - half:.2f} to {row.value + half:.2f}"


@dataclass(frozen=True)
class RealImages:
    """The real side of every figure: the training images are the reference, held-out ones stand beside them.

    `n`: images a set; `splits`: draws for the anchors; `cache`: where vectors and anchors are kept, or null. What takes
    long is done in shares: every rank asks for the same, in the same order, and has all of it.
    """

    data: Any
    features: Features
    n: int
    splits: int
    cache: str | None

    @property
    def folder(self) -> Path | None:
        """The cache, as a path."""
        return Path(self.cache) if self.cache else None

    @cached_property
    def reference(self) -> Tensor:
        """Vectors of the training images."""
        return cached_vectors(self.data.train, self.features, self.folder)

    @cached_property
    def held_out(self) -> Tensor:
        """Vectors of the held-out images."""
        return cached_vectors(self.data.held_out, self.features, self.folder)

    @cached_property
    def anchors(self) -> Anchors:
        """What real images give at n, by metric."""
        if self.n <= self.features.num_features:
            say(f"warning: n={self.n} images in {self.features.num_features} features: the distance is biased upward, most"
                " where n is small; read it beside its anchors alone")  # fmt: skip
        facts = {
            "features": self.features.name, "sha256": self.features.sha256, "n": str(self.n), "splits": str(self.splits),
            "train": image_hash(self.data.train), "held_out": image_hash(self.data.held_out), **versions(),
        }  # fmt: skip
        return kept(self.folder, self._anchors, facts)

    def _anchors(self) -> Anchors:
        found = anchors(self.reference, self.held_out, self.n, self.splits, self.features)
        beside = to_held_out(self.reference, self.held_out, self.shared, self.splits, self.features)
        return {**found, f"{self.features.metric}_held_out": {TRAINING: beside}}

    @cached_property
    def moments(self) -> Moments:
        """Of the training images' features."""
        return Moments.of(own(self.reference, self.features))

    def measures(self, found: Tensor) -> dict[Measure, float]:
        """Every measure of one set's vectors against the training images."""
        return measures(found, self.reference, self.features)

    def to_held_out(self, found: Tensor) -> float:
        """The distance of one set's vectors to the held-out images, at the smaller of both counts."""
        few, held_out = (own(at_most(one, self.shared), self.features) for one in (found, self.held_out))
        return frechet(few, held_out, self.features)

    @property
    def shared(self) -> int:
        """Images of either side in the distance to held-out ones."""
        return min(self.n, len(self.held_out))

    def sets(self, found: Tensor) -> list[Tensor]:
        """Vectors as disjoint sets; ValueError unless each has n, for beside anchors at another n none may stand."""
        if wrong := len(found) % self.n:
            raise ValueError(f"a set of {wrong} generated images cannot stand beside {self.n} real ones")
        return list(found.split(self.n))

    def rows(self, found: Sequence[Tensor], params: dict[str, Any]) -> list[Row]:
        """One row a measure over disjoint sets, as vectors; the distance first."""
        self.reference, self.held_out, self.anchors  # noqa: B018  every rank, before each has a set of its own
        each = dealt(lambda i: (self.measures(found[i]), self.to_held_out(found[i])), len(found), "measures")
        first, other = each[0][0], self._named("held_out", " to held-out images")
        rows = [self._row(measure, [one[measure] for one, _ in each], self.n, params) for measure in first]
        return [*rows, self._row(other, [value for _, value in each], self.shared, params)]

    def _named(self, suffix: str, words: str) -> Measure:
        """A relative of the distance."""
        distance = the_distance(self.features)
        return distance._replace(metric=f"{distance.metric}_{suffix}", label=f"{distance.label}{words}")

    def _row(self, measure: Measure, values: list[float], n: int, params: dict[str, Any], **facts: Any) -> Row:
        value, error = mean_and_error(values)
        facts |= {"anchors": self.anchors.get(measure.metric, {}), **measure._asdict()}
        return Row(value=value, error=error, n=n, params=params, sets=values, **facts)

    def limit(self, found: Sequence[Tensor], params: dict[str, Any]) -> Row:
        """The distance for N → ∞, without a value where it cannot be had."""
        measure = self._named("infinite", ", N → ∞")
        try:
            values = extrapolated([own(one, self.features) for one in found], self.moments)
        except NoLimit as why:
            return Row(value=None, n=self.n, params=params, anchors=self.anchors.get(measure.metric, {}),
                       card={"no_limit": str(why)}, **measure._asdict())  # fmt: skip
        return self._row(measure, values, self.n, params, key=True)

    def card(self, sets: int) -> dict[str, Any]:
        """The protocol that all figures against these images share."""
        splits = {"inception_score_splits": INCEPTION_SPLITS} if hasattr(self.features, "both") else {}
        return {
            "n": self.n, "sets": sets, "reference": f"{len(self.data.train)} training images",
            "prc_reference": f"{min(self.n, len(self.data.train))} of them", "data_hash": self.data.hash,
            "held_out": f"{len(self.data.held_out)} images" + (", fewer than n" if self.n > len(self.data.held_out) else ""),
            **draws_of(self.splits, self.features), "rounding": ROUNDING, **splits, **self.features.card(),
            "versions": versions(),
        }  # fmt: skip


def held_to_counts(n: int | None, sets: int | None, splits: int) -> None:
    """Raises ValueError where nothing could be measured with these."""
    if (sets is not None and sets < 1) or (n is not None and n < 4):  # precision and recall ask for the third neighbour
        asked = ", ".join(f"{name}={'null' if value is None else value}" for name, value in (("n", n), ("sets", sets)))
        raise ValueError(f"{asked}: at least 4 images and 1 set are needed")
    if splits < 2:
        raise ValueError(f"study.splits={splits}: at least 2 draws of real images are needed")


def count(n: int | None, data: Any) -> int:
    """Images a set: n, or as many as are held out, at most 5,000."""
    return n or min(len(data.held_out), AT_MOST)


def figure(row: Row) -> str:
    """A value with its standard error."""
    return f"{row.value:.2f}" + (f" ± {row.error:.2f}" if row.error is not None else "")
