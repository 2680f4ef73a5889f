"""Means with their errors, and what two of them tell apart."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

CONFIDENCE = 0.95


def mean_and_error(values: Tensor | Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent values (images, disjoint sets) and its standard error s.d./√n; no error from one value."""
    v = torch.as_tensor(values, dtype=torch.float64)
    return v.mean().item(), (v.std() / len(v) ** 0.5).item() if len(v) > 1 else None


def t_limit(df: float) -> float:
    """Student's t: a mean of df + 1 values lies within this many standard errors with 95 %. 4.30 for 2, 1.96 for ∞."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + CONFIDENCE) / 2))


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n independent cases (Wilson 1927): never empty, also where none or all were found."""
    z = t_limit(math.inf)
    middle, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


class Difference(NamedTuple):
    """The difference of two figures and the 95 % interval around it; `how` it was formed."""

    value: float
    low: float
    high: float
    how: str

    @property
    def distinct(self) -> bool:
        """Whether 0 lies outside the interval."""
        return not self.low <= 0 <= self.high


def paired(a: Sequence[float], b: Sequence[float]) -> Difference:
    """Mean of a_i - b_i, i a set that both have from the same x_T: what they share drops out. Two sets at least."""
    value, error = mean_and_error(torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64))
    half = t_limit(len(a) - 1) * error
    return Difference(value, value - half, value + half, "paired")


def welch(a: tuple[float, float, int], b: tuple[float, float, int]) -> Difference:
    """a - b of independent means, each (mean, standard error, number of values > 1), Welch 1947."""
    (x, e, n), (y, f, m) = a, b
    error = math.hypot(e, f)
    # Of shares: the fourth power of an error may be more than a float can be, or less.
    df = 1 / ((e / error) ** 4 / (n - 1) + (f / error) ** 4 / (m - 1)) if error else 1.0
    half = t_limit(df) * error
    return Difference(x - y, x - y - half, x - y + half, "Welch")


def between(a: float, of_a: tuple[float, float], b: float, of_b: tuple[float, float]) -> Difference:
    """a - b from the intervals of both (Newcombe 1998, method 10): for shares, whose intervals are not symmetric."""
    value = a - b
    low = value - math.hypot(a - of_a[0], of_b[1] - b)
    return Difference(value, low, value + math.hypot(of_a[1] - a, b - of_b[0]), "Newcombe")
