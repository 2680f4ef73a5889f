"""Figures of several evaluations beside each other on a page: tables, and distance against S."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from anysigma import html
from anysigma.compare import HIDDEN, disagreements, protocol
from anysigma.figures import Collected, Figure, better, number, phrase, said, varying
from anysigma.plots import COLOURS, Curve, Plot

WORDS = {
    "fd": "Fréchet distance", "fid": "FID", "kid": "KID", "precision": "Precision", "recall": "Recall",
    "inception_score": "Inception Score", "isc": "Inception Score", "reconstruction_mse": "Mean squared error",
}  # fmt: skip
HEADS = {"sigma": "σ", "tau": "τ", "eta": "η", "clip": "clipped"}


def metric_name(metric: str) -> str:
    """A metric's name as a person reads it, with the features it was taken in; an unknown one as it is."""
    first, _, rest = metric.partition("_")
    name, features = (WORDS[metric], "") if metric in WORDS else (WORDS.get(first, ""), rest)
    way = {
        -1: ' <span class="way" title="lower is better">↓</span>',
        1: ' <span class="way" title="higher is better">↑</span>',
    }
    shown = name + (f" <small>in {escape(features)} features</small>" if features else "")
    return (shown if name else f"<code>{escape(metric)}</code>") + way.get(better(metric), "")


def shown_value(figure: Figure) -> list[str]:
    """Value ± standard error, floor ± spread, as cells."""
    value, _, error = number(figure.value, figure.error).partition(" ± ")
    bar = f' <span class="pm">± {error}</span>' if error else ""
    return [f"<b>{value}</b>{bar}", number(figure.floor, figure.floor_sd)]


def comparison(found: Sequence[Figure], results: Collected, numbers: Iterable[int]) -> str:
    """A table for each metric of each study, and distance against S where several were tried."""
    kinds = list(dict.fromkeys((figure.study, figure.metric) for figure in found))
    plots = "".join(html.plot(one, f"p{next(numbers)}") for one in distances(found))
    tables = "".join(table(study, [f for f in found if (f.study, f.metric) == (study, m)]) for study, m in kinds)
    drawn = f'<div class="figures">{plots}</div>\n' if plots else ""
    return f'<section id="figures"><h2>Side by side</h2>{drawn}{tables}</section>\n' if found else ""


def table(study: str, found: Sequence[Figure]) -> str:
    """All figures of one metric: best first where their cards allow to rank them, as they came where not."""
    apart, way = disagreements(found, ("tau", "clip")), better(found[0].metric)
    if way and not apart:
        found = sorted(found, key=lambda f: (f.value is None, -way * (f.value or 0)))
    lines = [n for n in varying([f.setting for f in found]) if n.split(".")[0] not in HIDDEN and "." not in n]
    lines = [n for n in lines if n in ("step", "weights", "n", "sets", "seed") or any(n in f.params for f in found)]
    rows = [[run(f), *(html.prose(said(n, f.setting.get(n))) for n in lines), *shown_value(f)] for f in found]
    title = f"{metric_name(found[0].metric)} <small>{html.prose(study.replace('_', ' '))}</small>"
    note = f"In their order, not ranked: the cards differ in {escape(', '.join(apart))}." if apart else ""
    return html.table(["Run", *(HEADS.get(n, html.prose(n)) for n in lines), "Value", "Floor"], {"": rows}, title, note)


def run(figure: Figure) -> str:
    """The run's name as a cell."""
    return escape(figure.run)


def distances(found: Sequence[Figure]) -> list[Plot]:
    """Distance against S, a curve for each σ and for whatever else differs, of every metric tried at several S."""
    plots = []
    for metric in dict.fromkeys(figure.metric for figure in found):
        rows = [f for f in found if f.metric == metric and f.value is not None and {"S", "sigma"} <= f.params.keys()]
        if metric.split("_")[0] in ("fd", "fid") and len({f.params["S"] for f in rows}) > 1:
            plots += against_S(metric, rows)
    return plots


def against_S(metric: str, rows: Sequence[Figure], common: str = "") -> list[Plot]:
    """One plot, or one for each value of what differs first where there are more curves than colours."""
    settings = [curve_setting(row) for row in rows]
    names, curves = varying(settings), defaultdict(dict)
    for row, setting in zip(rows, settings, strict=True):
        curves[tuple(repr(setting.get(name)) for name in names)].setdefault(row.params["S"], (row, setting))
    if len(curves) >= len(COLOURS) and len(names) > 1:
        parts = defaultdict(list)
        for row, setting in zip(rows, settings, strict=True):
            parts[str(setting.get(names[0]))].append(row)
        said_before = f"{common}, " if common else ""
        return [
            one
            for value, part in parts.items()
            for one in against_S(metric, part, f"{said_before}{label({names[0]: value})}")
        ]
    drawn = [curve(points, names) for points in curves.values()]
    caption = f"{metric} against the number of steps S, ± one standard error{f': {common}' if common else ''}."
    return [Plot(caption, "S (network evaluations an image)", metric, [*drawn, *floor(rows)], log_x=True)]


def curve_setting(row: Figure) -> dict[str, Any]:
    """What makes a point part of another curve: the run, the protocol, and σ."""
    same = {name: value for name, value in protocol(row).items() if name != "S"}
    return {"run": row.run, "step": row.setting.get("step"), **same, "sigma": row.params["sigma"]}


def curve(points: dict[int, tuple[Figure, dict[str, Any]]], names: Sequence[str]) -> Curve:
    """Points of rising S, with a bar where every one has an error."""
    order = [points[S] for S in sorted(points)]
    errors = [row.error for row, _ in order]
    text = label({name: order[0][1].get(name) for name in names}) or "generated"
    return Curve(text, sorted(points), [row.value for row, _ in order], None if None in errors else errors)


def label(setting: dict[str, Any]) -> str:
    """The run by its name alone, the rest in words."""
    rest = phrase({name: value for name, value in setting.items() if name != "run"})
    return ", ".join(filter(None, [str(setting.get("run") or ""), rest]))


def floor(rows: Sequence[Figure]) -> list[Curve]:
    """The floor as a line, where all rows share it."""
    floors, S = {row.floor for row in rows}, [row.params["S"] for row in rows]
    return (
        [Curve("floor", [min(S), max(S)], [floors.pop()] * 2, style="--")] if len(floors) == 1 and None not in floors else []
    )
