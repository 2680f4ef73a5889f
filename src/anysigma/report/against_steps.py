"""Figures against the number of steps S: a curve for each σ, and for whatever else was set apart."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from anysigma.metrics.anchors import Anchor
from anysigma.report.figures import Figure, phrase, varying
from anysigma.report.plots import COLOURS, Curve, Plot
from anysigma.report.ranking import protocol

Point = tuple[Figure, dict[str, Any]]  # a figure, and what makes it part of another curve
WIDE = 20  # values this many times apart are drawn on a logarithmic axis


def against_S(found: Sequence[Figure]) -> list[Plot]:
    """Plots of one metric's figures that have an S, or none: of a single S, or where neither way is better."""
    having = [
        f for f in found if f.row.better and f.row.value is not None and isinstance(f.row.params.get("S"), int | float)
    ]
    return plots([(figure, curve_setting(figure)) for figure in having])


def plots(points: Sequence[Point], common: str = "") -> list[Plot]:
    """One plot, or one for each run, and so on, where there are more curves than colours; none of a single S."""
    if len({figure.row.params["S"] for figure, _ in points}) < 2:
        return []
    names = telling([setting for _, setting in points])
    curves = parted(points, names)
    others = [name for name in names if name not in ("sampler", "sigma", "eta")]
    if len(curves) < len(COLOURS) or not others:
        return [plot(points, [curve(some, names) for some in curves], common)]
    found = []
    for part in parted(points, others[:1]):
        words = label({others[0]: part[0][1].get(others[0])})
        found += plots(part, ", ".join(filter(None, [common, words])))
    return found


def plot(points: Sequence[Point], curves: Sequence[Curve], common: str) -> Plot:
    """The curves and, where all points share them, their anchors as lines."""
    rows = [figure.row for figure, _ in points]
    name, values, S = rows[0].name, [row.value for row in rows], [row.params["S"] for row in rows]
    shared = rows[0].anchors if all(row.anchors == rows[0].anchors for row in rows) else {}
    caption = f"{name} against the number of steps S, ± one standard error{f'; {common}' if common else ''}."
    log_y = min(values) > 0 and max(values) > WIDE * min(values)
    return Plot(caption, "S (steps)", name, [*curves, *anchored(shared, S)], log_x=True, log_y=log_y)


def anchored(anchors: Mapping[str, Anchor], S: Sequence[int]) -> list[Curve]:
    """What real images give, the first two kinds, as a line each over all S."""
    kinds = zip(anchors.items(), (":", "-."), strict=False)
    return [Curve(kind, [min(S), max(S)], [anchor.value] * 2, style=style) for (kind, anchor), style in kinds]


def curve_setting(figure: Figure) -> dict[str, Any]:
    """What makes a point part of another curve: the run, all that was set but S, and the protocol."""
    facts = {"run": figure.run, **figure.row.params, "step": figure.setting.get("step"), **protocol(figure)}
    return {name: value for name, value in facts.items() if name != "S"}


def telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """What tells the curves apart: run and σ, where they vary, and each line that says more than those before it."""
    names: list[str] = []
    for name in varying(settings):
        parts = len({values(setting, names) for setting in settings})
        if name in ("run", "sigma") or len({values(setting, [*names, name]) for setting in settings}) > parts:
            names.append(name)
    return names


def parted(points: Sequence[Point], names: Sequence[str]) -> list[list[Point]]:
    """The points, those together that agree in these lines."""
    parts = defaultdict(list)
    for point in points:
        parts[values(point[1], names)].append(point)
    return list(parts.values())


def values(setting: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The lines' values, so that they can be held against those of others."""
    return tuple(repr(setting.get(name)) for name in names)


def curve(points: Sequence[Point], names: Sequence[str]) -> Curve:
    """Points of rising S, the first of each, with a bar where every one has an error."""
    first = {figure.row.params["S"]: figure.row for figure, _ in reversed(points)}
    rows = [first[S] for S in sorted(first)]
    errors = [row.error for row in rows]
    text = label({name: points[0][1].get(name) for name in names}) or "generated"
    return Curve(text, sorted(first), [row.value for row in rows], None if None in errors else errors)


def label(setting: dict[str, Any]) -> str:
    """The run by its name alone, the rest in words."""
    rest = phrase({name: value for name, value in setting.items() if name != "run" and value is not None})
    return ", ".join(filter(None, [str(setting.get("run") or ""), rest]))
