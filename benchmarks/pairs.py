"""Contestants in turn, and what their times tell: medians with spread, ratios by pairs with their interval."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from anysigma.metrics.statistics import mean_and_error, t_limit


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each gives in every round, one at a time; every other round backwards, so that a drift favours none."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        order = list(contestants)
        for name in order if number % 2 == 0 else reversed(order):
            found[name].append(contestants[name]())
    return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, how many."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How many times theirs, round by round: the geometric mean, and its 95 % interval by Student's t over the pairs.

    One pair has no interval.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean, error = mean_and_error(logs)
    found = {"ratio": math.exp(mean), "pairs": len(logs)}
    if error is not None:
        half = t_limit(len(logs) - 1) * error
        found |= {"low": math.exp(mean - half), "high": math.exp(mean + half)}
    return found


def turn_steps(step_seconds: float, seconds: float) -> int:
    """How many steps take about so long; at least one."""
    return max(1, round(seconds / step_seconds))
