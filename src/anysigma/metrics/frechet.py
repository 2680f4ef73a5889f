"""The Fréchet distance by its closed form: what anchors and the extrapolation to infinitely many images need often."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from anysigma.diffusion.noise import stream
from anysigma.machine.progress import dealt
from anysigma.metrics.statistics import mean_and_error, t_limit

POINTS, FIRST, DRAWS = 15, 0.25, 8  # counts between n/4 (at least D+1) and n, subsets drawn at each
WIDE = 512  # features: above it a distance takes seconds, and is computed no more often than it has to be


@dataclass(frozen=True)
class Moments:
    """Mean `[D]` and covariance `[D, D]` of feature vectors, float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Self:
        """Of `[N, D]`, N ≥ 2; the covariance over N-1, as torch-fidelity takes it."""
        x = vectors.double()
        return cls(x.mean(0), torch.cov(x.T))

    @cached_property
    def root(self) -> Tensor:
        """Σ^½, symmetric; eigenvalues that rounding made negative are 0."""
        values, columns = torch.linalg.eigh(self.covariance)
        return columns * values.clamp(min=0).sqrt() @ columns.T

    def distance(self, other: Self) -> float:
        """‖μ - μ'‖² + tr Σ + tr Σ' - 2 tr (ΣΣ')^½, the last as the sum of √λ(Σ^½ Σ' Σ^½): symmetric, so no square root
        of a matrix that has none is asked for. `self.root` is kept: let `self` be the side that stays.
        """
        shared = torch.linalg.eigvalsh(self.root @ other.covariance @ self.root).clamp(min=0).sqrt().sum()
        traces = self.covariance.trace() + other.covariance.trace()
        return ((self.mean - other.mean).square().sum() + traces - 2 * shared).item()


class NoLimit(ValueError):
    """The sets do not bear an extrapolation; the message says why."""


def extrapolated(sets: Sequence[Tensor], reference: Moments) -> list[float]:
    """The distance at N → ∞ generated images, Chong & Forsyth 2020: one value for each disjoint set `[n, D]`.

    A distance of N images is biased by about 1/N, by an amount that depends on the generator. A line is fitted to the
    distances of N of a set's images against 1/N, at 15 N from n/4 (at least D+1) to n, each the mean over 8 random
    subsets (in wide features 1); its intercept is the set's value. The reference stays as it is. Raises NoLimit for one
    set alone, for fewer than two images a feature, and where the 95 % interval (Student's t over the sets) of a
    curvature over 1/N leaves out 0. Each set's is computed by one rank; every rank calls it.
    """
    n, D = sets[0].shape
    if len(sets) < 2:
        raise NoLimit("one set alone has no error")
    if n < 2 * D:
        raise NoLimit(f"{n} images in {D} features: at least two a feature are needed")
    counts = counted(n, D)
    curves = torch.stack(dealt(lambda k: curve(sets[k], counts, reference), len(sets), "N to infinity"))
    curvature, error = mean_and_error(fitted(counts, curves, 2)[:, 2])
    if abs(curvature) > t_limit(len(sets) - 1) * error:
        raise NoLimit("the distance is not linear in 1/N within its error")
    return fitted(counts, curves, 1)[:, 0].tolist()


def counted(n: int, D: int) -> list[int]:
    """The N of the fit."""
    return torch.linspace(max(FIRST * n, D + 1), n, POINTS).round().long().tolist()


def intercept(one: Tensor, reference: Moments) -> float:
    """One set's value of `extrapolated`, without the test of its curvature."""
    counts = counted(*one.shape)
    return fitted(counts, curve(one, counts, reference)[None], 1)[0, 0].item()


def curve(one: Tensor, counts: Sequence[int], reference: Moments) -> Tensor:
    """The distance of N of the set's images for every N, the mean over seeded subsets; `[len(counts)]`."""
    found, draws = [], DRAWS if one.shape[1] <= WIDE else 1
    for N in counts:
        orders = [torch.randperm(len(one), generator=stream(N, k)) for k in range(draws if len(one) > N else 1)]
        found.append(sum(reference.distance(Moments.of(one[order[:N]])) for order in orders) / len(orders))
    return torch.tensor(found, dtype=torch.float64)


def fitted(counts: Sequence[int], curves: Tensor, degree: int) -> Tensor:
    """Least squares in powers of 1/N for each curve `[K, len(counts)]`: `[K, degree + 1]`, the constant first."""
    powers = (1 / torch.tensor(counts, dtype=torch.float64))[:, None] ** torch.arange(degree + 1)
    scale = powers.amax(0)
    return (torch.linalg.lstsq(powers / scale, curves.T).solution / scale[:, None]).T
