"""What real images give in the place of generated ones, at equal counts: what a figure is read against."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from anysigma.diffusion.noise import stream
from anysigma.machine.distributed import firsts, is_first
from anysigma.machine.progress import dealt
from anysigma.machine.writing import written
from anysigma.metrics.fidelity import Features, Measure, at_most, frechet, measures, own, the_distance
from anysigma.metrics.frechet import WIDE, Moments, intercept
from anysigma.metrics.statistics import mean_and_error

SPLITS, HELD_OUT, REDRAWN, TRAINING = (
    "real images",  # n of all against the others, drawn anew each time
    "held-out images",  # against the training images
    "training images drawn again",  # n of them with replacement, against all of them
    "training images",  # n of them against the held-out images
)
FORMAT = "3"  # of what is kept
SECONDS = 300  # at most, for a kind of anchor; the number of draws says what came of it

Pairs = Callable[[int], tuple[Tensor, Tensor]]  # of a draw's number: images in the place of generated ones, and the others
Anchors = dict[str, dict[str, "Anchor"]]


@dataclass(frozen=True)
class Anchor:
    """A figure of real images: the mean of `draws`; `sd` of one draw, to hold a value against; `error` of the mean.

    The error is that of drawing from these images: it says nothing of other ones.
    """

    value: float
    sd: float | None = None
    error: float | None = None
    draws: int = 1

    def __str__(self) -> str:
        draws = f", {self.draws} draws" if self.draws > 1 else ""
        spread = f" (one draw ± {self.sd:.2g}{draws})" if self.sd is not None else ""
        return f"{self.value:.3g}{spread}"

    @classmethod
    def of(cls, values: list[float]) -> "Anchor":
        """From the values of the draws; one alone has neither sd nor error."""
        value, error = mean_and_error(values)
        return cls(value, error * len(values) ** 0.5 if error is not None else None, error, len(values))


def anchors(train: Tensor, held_out: Tensor, n: int, splits: int, features: Features) -> Anchors:
    """Every measure's anchors, by metric and kind, at n images; feature vectors go in.

    `splits` draws of n real images against the others, a quarter as many of the training images drawn again, and
    the held-out images in disjoint sets. n above what is held out leaves the second alone. The distance is taken of
    every draw, what stands beside it (KID takes most of the time) of the first ones: an eighth of `splits`. Each draw is
    measured by one rank; every rank calls it.
    """
    few, full = max(2, splits // 4), draws_beside(splits)
    pairs: dict[str, tuple[Pairs, int]] = {REDRAWN: (lambda i: redrawn(train, n, i), few)}
    if n <= len(held_out):
        sets = torch.randperm(len(held_out), generator=stream(0)).split(n)[: len(held_out) // n]
        pairs[HELD_OUT] = (lambda i: (held_out[sets[i]], train), len(sets))
        real = torch.cat([train, held_out])
        pairs[SPLITS] = (lambda i: real_split(real, n, i), splits)
    wide = features.num_features > WIDE
    measure, alone = (by_eigenvalues(train, features),) * 2 if wide else (measures, distance)
    found: Anchors = {}
    for kind, (draw, count) in reversed(pairs.items()):

        def of_draw(i: int, draw: Pairs = draw) -> dict[Measure, float]:
            return (measure if i < full else alone)(*draw(i), features)

        values = dealt(of_draw, count, f"anchor: {kind}", SECONDS)
        for measured in values[0]:
            found.setdefault(measured.metric, {})[kind] = Anchor.of([one[measured] for one in values if measured in one])
    if SPLITS in pairs and features.num_features <= min(WIDE, n // 2):
        what = f"anchor: {SPLITS}, N to infinity"
        limits = dealt(lambda i: limit(*real_split(real, n, i), features), few, what, SECONDS)
        found[f"{features.metric}_infinite"] = {SPLITS: Anchor.of(limits)}
    return found


def draws_beside(splits: int) -> int:
    """Draws of what stands beside the distance, where the distance has `splits`."""
    return max(2, splits // 8)


def draws_of(splits: int, features: Features) -> dict[str, int]:
    """For the card: draws of the distance, and of what stands beside it; in many features nothing else is anchored."""
    beside = {} if features.num_features > WIDE else {"anchor_draws_beside": draws_beside(splits)}
    return {"anchor_draws": splits, **beside}


def distance(one: Tensor, rest: Tensor, features: Features) -> dict[Measure, float]:
    """The distance alone."""
    return {the_distance(features): frechet(own(one, features), own(rest, features), features)}


def limit(one: Tensor, rest: Tensor, features: Features) -> float:
    """The distance of real images extrapolated to infinitely many: not 0, for the reference is finite too."""
    return intercept(own(one, features), Moments.of(own(rest, features)))


def to_held_out(train: Tensor, held_out: Tensor, n: int, splits: int, features: Features) -> Anchor:
    """The distance of n training images to n held-out ones: what the generated images' own is read against."""
    reference, draws = own(at_most(held_out, n), features), max(2, splits // 4)
    moments = Moments.of(reference) if features.num_features > WIDE else None

    def of_draw(i: int) -> float:
        few = own(train[torch.randperm(len(train), generator=stream(i))[:n]], features)
        return frechet(few, reference, features) if moments is None else moments.distance(Moments.of(few))

    return Anchor.of(dealt(of_draw, draws, f"anchor: {TRAINING}, to held-out ones", SECONDS))


def redrawn(train: Tensor, n: int, draw: int) -> tuple[Tensor, Tensor]:
    """n of the training images with replacement, against all of them."""
    return train[torch.randint(len(train), (n,), generator=stream(draw))], train


def real_split(real: Tensor, n: int, split: int) -> tuple[Tensor, Tensor]:
    """A seeded random split into n of the real images and the others."""
    order = torch.randperm(len(real), generator=stream(split))
    return real[order[:n]], real[order[n:]]


def by_eigenvalues(train: Tensor, features: Features) -> Callable[[Tensor, Tensor, Features], dict[Measure, float]]:
    """The distance alone, by eigenvalues: in 2,048 features a matrix square root for every draw would take hours.

    The moments of the training images, the reference of most draws, are formed once.
    """
    known = Moments.of(own(train, features))

    def measure(one: Tensor, rest: Tensor, features: Features) -> dict[Measure, float]:
        reference = known if rest is train else Moments.of(own(rest, features))
        return {the_distance(features): reference.distance(Moments.of(own(one, features)))}

    return measure


def kept(path: Path | None, make: Callable[[], Anchors], facts: dict[str, str]) -> Anchors:
    """What `make` gives, kept in a file named for `facts`; one that cannot be read is made anew.

    Every rank calls it; the first one reads and writes.
    """
    if path is None:
        return make()
    facts = {**facts, "format": FORMAT}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    path = path / f"anchors-{facts['features']}-{key}.json"
    if (found := firsts(read(path, facts) if is_first() else None)) is not None:
        return found
    found = make()
    if is_first():
        write(path, facts, found)
    return found


def read(path: Path, facts: dict[str, str]) -> Anchors | None:
    """Those in the file; None where there is none, where it cannot be read, and where it is of other facts."""
    try:
        content = json.loads(path.read_text())
        if content["facts"] == facts:
            return {
                metric: {kind: Anchor(**one) for kind, one in some.items()} for metric, some in content["anchors"].items()
            }
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def write(path: Path, facts: dict[str, str], found: Anchors) -> None:
    """Aside, then renamed."""
    plain = {metric: {kind: asdict(one) for kind, one in some.items()} for metric, some in found.items()}
    with written(path) as aside:
        aside.write_text(json.dumps({"facts": facts, "anchors": plain}, indent=1))
