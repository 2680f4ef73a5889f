"""τ rules: which S of the T steps a sampler visits. Every rule returns a rising list in 1..T of length S."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class TauRule(Protocol):
    """(S, T) → τ, rising, in 1..T, of length S (an explicit list brings its own S)."""

    def __call__(self, S: int, T: int) -> list[int]: ...


@dataclass(frozen=True)
class Uniform:
    """τ_i = 1 + ⌊i·T/S⌋, i = 0..S-1 (DDIM appendix D.2, linear; the official grid where S divides T)."""

    def __call__(self, S: int, T: int) -> list[int]:
        """Starts at 1 and ends T/S before T."""
        return [1 + i * T // S for i in range(S)]


@dataclass(frozen=True)
class Trailing:
    """τ_i = round((i+1)·T/S), i = 0..S-1: ends at T, so that sampling starts where the signal is weakest."""

    def __call__(self, S: int, T: int) -> list[int]:
        """Halves are rounded up."""
        return [(2 * (i + 1) * T + S) // (2 * S) for i in range(S)]


@dataclass(frozen=True)
class Quadratic:
    """τ_i = 1 + ⌊x_i²⌋, x = linspace(0, √(0.8 T), S) (DDIM appendix D.2, quadratic; the official CIFAR10 grid)."""

    def __call__(self, S: int, T: int) -> list[int]:
        """Dense near 1, where it repeats itself, and ends at 1 + ⌊0.8 T⌋, but for the rounding of x_i²."""
        # numpy's linspace to the last bit: where x_i² is a whole number, rounding decides on which side of it τ_i falls.
        end = math.sqrt(0.8 * T)
        step = end / max(S - 1, 1)
        x = [i * step for i in range(S - 1)] + [end if S > 1 else 0.0]
        return [1 + int(x_i * x_i) for x_i in x]


@dataclass(frozen=True)
class UpTo:
    """Another rule's τ over 1..`last` in place of 1..T; S = T visits every step of it.

    Raises ValueError for `last` < 1.
    """

    rule: TauRule
    last: int

    def __post_init__(self):
        if self.last < 1:
            raise ValueError(f"tau.last={self.last}: at least 1 step is needed")

    def __call__(self, S: int, T: int) -> list[int]:
        """S steps, or `last` of them where it is smaller."""
        last = min(self.last, T)
        return self.rule(S, last) if last > S else list(range(1, last + 1))


@dataclass(frozen=True)
class Explicit:
    """A list written by hand, rising or falling; a 0 at its end (the slides' 10 → 8 → … → 0) is s = 0 and dropped.

    Raises ValueError where it is not monotone or leaves 1..T.
    """

    values: tuple[int, ...]

    def __post_init__(self):
        values = list(self.values)
        rising = sorted(values)
        if not values or values not in (rising, rising[::-1]):
            raise ValueError(f"tau={values}: an explicit τ must be a rising or a falling list of steps")

    def __call__(self, S: int | None, T: int) -> list[int]:
        """The list itself, rising; S is ignored."""
        rising = sorted(self.values)
        steps = rising[1:] if rising[0] == 0 else rising
        if not steps or steps[0] < 1 or steps[-1] > T:
            raise ValueError(f"tau={list(self.values)}: every step must lie in 1..{T}")
        return steps


def tau_rule(tau: TauRule | Sequence[int]) -> TauRule:
    """A rule as it is; a list becomes `Explicit`. Raises ValueError for a word or for what is no whole number."""
    if isinstance(tau, str) or (isinstance(tau, Sequence) and any(int(t) != t for t in tau)):
        raise ValueError(f"tau={tau}: a list of whole numbers, or a rule chosen by sampler/tau=NAME")
    return Explicit(tuple(int(t) for t in tau)) if isinstance(tau, Sequence) else tau
