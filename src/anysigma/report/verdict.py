"""Whether two figures can be told apart: in pairs where their sets share x_T, by Welch where not."""

from collections.abc import Mapping, Sequence
from typing import Any

from anysigma.metrics.statistics import Difference, between, paired, welch
from anysigma.report.results import Row

# Where two cards agree in these, set i of both is made from the same noise.
NOISE = ("seed", "block", "n", "sets", "shape")
HOW = {
    "paired": "Student's t over the sets, in pairs where both began with the same x_T",
    "Welch": "Welch's t",
    "Newcombe": "Newcombe's from the Wilson intervals of both",
}


def rule(verdicts: Sequence[Difference | None]) -> str:
    """How these verdicts were come to, and what they hold for."""
    ways = dict.fromkeys(HOW[verdict.how] for verdict in verdicts if verdict is not None) or ["none was formed"]
    for_what = "each comparison by itself, on these checkpoints and these real images"
    return f"95 % interval of the difference ({'; '.join(ways)}), {for_what}"


def difference(one: Row, other: Row, *, same_noise: bool) -> Difference | None:
    """one - other with its interval; None where nothing can be said: a single set, or no error."""
    if one.value is None or other.value is None:
        return None
    if one.sets or other.sets:
        if min(len(one.sets), len(other.sets)) < 2:
            return None
        if same_noise and len(one.sets) == len(other.sets):
            return paired(one.sets, other.sets)
        if one.error is None or other.error is None:
            return None
        return welch((one.value, one.error, len(one.sets)), (other.value, other.error, len(other.sets)))
    if one.interval and other.interval:
        return between(one.value, one.interval, other.value, other.interval)
    if one.error is None or other.error is None or min(one.n or 0, other.n or 0) < 2:
        return None
    return welch((one.value, one.error, one.n), (other.value, other.error, other.n))


def same_noise(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two cards say that image k of both was made from the same noise."""
    return all(name in one and one[name] == other.get(name) for name in NOISE)


def counted(verdicts: Sequence[Difference | None]) -> str:
    """How many comparisons were made, and how many of them would be told apart were nothing different."""
    made = sum(verdict is not None for verdict in verdicts)
    if not made:
        return "No comparison: that takes two sets or more."
    return f"{made} comparison{'s' if made > 1 else ''}; were nothing different, about {made / 20:.2g} would be told apart."
