"""Figures of several evaluations beside each other on a page: tables, and distance against S."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from anysigma.report import html
from anysigma.report.figures import Figure, better, number, phrase, said, varying
from anysigma.report.plots import COLOURS, Curve, Plot
from anysigma.report.ranking import disagreements, protocol

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
        -1: '&nbsp;<span class="way" title="lower is better">↓</span>',
        1: '&nbsp;<span class="way" title="higher is better">↑</span>',
    }
    plain = re.sub(r"(?<=[a-z]{2})_", " ", metric).replace("_sigma", "_σ").replace("_gamma", "_γ")
    feature_name = f" <small>in {escape(features)} features</small>" if name and features else ""
    return (name or html.prose(plain)) + way.get(better(metric), "") + feature_name


def shown_value(figure: Figure) -> list[str]:
    """Value ± standard error, floor ± spread, as cells."""
    value, _, error = number(figure.value, figure.error).partition(" ± ")
    bar = f' <span class="pm">± {error}</span>' if error else ""
    floor, _, spread = number(figure.floor, figure.floor_sd).partition(" ± ")
    return [f"<b>{value}</b>{bar}", floor + (f' <span class="pm">± {spread}</span>' if spread else "")]


def comparison(found: Sequence[Figure], numbers: Iterable[int]) -> str:
    """Distance against S where several were tried, then a table for each metric that several evaluations have."""
    kinds: dict[tuple[str, str], list[Figure]] = {}
    for figure in found:
        kinds.setdefault((figure.study, figure.metric), []).append(figure)
    shared = {kind: rows for kind, rows in kinds.items() if len({row.path for row in rows}) > 1}
    alone = [row for kind, rows in kinds.items() if kind not in shared for row in rows]
    plots = "".join(html.plot(one, f"p{next(numbers)}") for one in distances(found))
    drawn = f'<div class="figures">{plots}</div>\n' if plots else ""
    tables = drawn + "".join(table(study, rows) for (study, _), rows in shared.items())
    text = f'<section id="compared"><h2>Side by side</h2>{tables}</section>\n' if tables else ""
    return text + key_figures(alone, "Other figures" if tables else "Key figures")


def key_figures(found: Sequence[Figure], title: str = "Key figures") -> str:
    """All figures by study and metric, in one table."""
    if not found:
        return ""
    metrics = list(dict.fromkeys(figure.metric for figure in found))
    runs, groups = {figure.run for figure in found}, {}
    for row in sorted(found, key=lambda row: metrics.index(row.metric)):
        setting = phrase(row.params) if len(runs) == 1 else ", ".join(filter(None, [row.run, phrase(row.params)]))
        cells = [metric_name(row.metric), *shown_value(row), html.prose(setting)]
        groups.setdefault(html.prose(row.title), []).append(cells)
    floors = " Floor: what as many real images reach in place of the generated ones, ± its spread."
    note = "± one standard error." + (floors if any(figure.floor is not None for figure in found) else "")
    body = html.table(["Figure", "Value", "Floor", "Setting"], groups, note=note)
    return f'<section id="figures"><h2>{title}</h2>{body}</section>\n'


def table(study: str, found: Sequence[Figure]) -> str:
    """All figures of one metric: best first where their cards allow to rank them, as they came where not."""
    apart, way = disagreements(found, ("tau", "clip")), better(found[0].metric)
    if way and not apart:
        found = sorted(found, key=lambda f: (f.value is None, -way * (f.value or 0)))
    lines = [n for n in varying([f.setting for f in found]) if shown(n, found)]
    rows = [[escape(f.run), *(html.prose(said(n, f.setting.get(n))) for n in lines), *shown_value(f)] for f in found]
    title = f"{metric_name(found[0].metric)} <small>· {html.prose(study.replace('_', ' '))}</small>"
    parts = ", ".join(dict.fromkeys(line.split(".")[0].replace("_", " ") for line in apart))
    note = f"In their order, not ranked: the cards differ in {escape(parts)}." if apart and way else ""
    return table_of(
        ["Run", *(HEADS.get(n, html.prose(n.replace("_", " "))) for n in lines), "Value", "Floor"], rows, title, note
    )


def shown(line: str, found: Sequence[Figure]) -> bool:
    """Whether a line that varies gets a column: what was set for the figure, and what the run does not tell by itself."""
    by_run = {figure.run: figure.setting.get(line) for figure in found}
    told = all(by_run[figure.run] == figure.setting.get(line) for figure in found)
    return any(line in f.params for f in found) or (line in ("step", "weights", "n", "sets", "seed") and not told)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, note: str) -> str:
    """The table, without its last column where that is empty."""
    width = len(columns) if any(row[-1] != number(None) for row in rows) else -1
    return html.table(columns[:width], {"": [row[:width] for row in rows]}, title, note)


def distances(found: Sequence[Figure]) -> list[Plot]:
    """Distance against S, a curve for each σ and for whatever else differs, of every metric tried at several S."""
    plots = []
    for metric in dict.fromkeys(figure.metric for figure in found):
        rows = [f for f in found if f.metric == metric and f.value is not None and {"S", "sigma"} <= f.params.keys()]
        if metric.split("_")[0] in ("fd", "fid") and len({f.params["S"] for f in rows}) > 1:
            plots += against_S(metric, rows)
    return plots


def against_S(metric: str, rows: Sequence[Figure], common: str = "") -> list[Plot]:
    """One plot, or one for each run, and so on, where there are more curves than colours; none of a single S."""
    if len({row.params["S"] for row in rows}) < 2:
        return []
    settings = [curve_setting(row) for row in rows]
    names = telling(settings)
    curves, others = defaultdict(dict), [name for name in names if name != "sigma"]
    for row, setting in zip(rows, settings, strict=True):
        curves[values(setting, names)].setdefault(row.params["S"], (row, setting))
    if len(curves) >= len(COLOURS) and others:
        parts = defaultdict(list)
        for row, setting in zip(rows, settings, strict=True):
            parts[", ".join(filter(None, [common, label({others[0]: setting.get(others[0])})]))].append(row)
        return [one for said_before, part in parts.items() for one in against_S(metric, part, said_before)]
    drawn = [curve(points, names) for points in curves.values()]
    caption = f"{metric} against the number of steps S, ± one standard error{f'; {common}' if common else ''}."
    return [Plot(caption, "S (network evaluations an image)", metric, [*drawn, *floor(rows)], log_x=True)]


def curve_setting(row: Figure) -> dict[str, Any]:
    """What makes a point part of another curve: the run, σ, and the protocol."""
    same = {name: value for name, value in protocol(row).items() if name != "S"}
    return {"run": row.run, "sigma": row.params["sigma"], "step": row.setting.get("step"), **same}


def telling(settings: Sequence[dict[str, Any]]) -> list[str]:
    """What tells the curves apart: run and σ, where they vary, and each line that says more than those before it."""
    names: list[str] = []
    for name in varying(settings):
        parts = len({values(setting, names) for setting in settings})
        if name in ("run", "sigma") or len({values(setting, [*names, name]) for setting in settings}) > parts:
            names.append(name)
    return names


def values(setting: dict[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    """The lines' values, so that they can be held against those of others."""
    return tuple(repr(setting.get(name)) for name in names)


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
