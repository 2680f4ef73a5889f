"""Figures of evaluations that lie on disk: found, each with its card, written as a person reads them."""

import glob
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anysigma.report.results import Row, read_results, rows_of

Collected = Sequence[tuple[Path, dict[str, Any]]]
Kind = tuple[str, str]

WAYS = {-1: "lower is better", 0: "which way is better is not known", 1: "higher is better"}


@dataclass(frozen=True)
class Figure:
    """One row of a results.json; `setting`: its card and its params, nested names joined by dots, as in row.params."""

    path: Path
    study: str
    title: str
    row: Row
    setting: dict[str, Any]

    @property
    def kind(self) -> Kind:
        """(study, metric): figures of one kind are of the same thing."""
        return self.study, self.row.metric

    @property
    def run(self) -> str:
        """The checkpoint's run, or the folder where there was no checkpoint."""
        return run_of(self.setting.get("checkpoint")) or self.path.parent.name


def collect(patterns: str | Sequence[str]) -> list[tuple[Path, dict[str, Any]]]:
    """Every evaluation's results.json in these files, folders (at any depth) and globs, with its path, each once.

    Raises ValueError where a pattern finds nothing or a file has another format.
    """
    found: dict[Path, dict[str, Any]] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        places = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]
        here = {path: content for place in places for path, content in _below(Path(place))}
        if not here:
            raise ValueError(f"{pattern}: no results.json of an evaluation there")
        found |= {path: content for path, content in here.items() if path.resolve() not in {p.resolve() for p in found}}
    return list(found.items())


def _below(place: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    """Results of evaluations; those of trainings, which have no sections, are passed over."""
    if place.is_dir():
        read = ((path, read_results(path)) for path in sorted(place.rglob("results.json")))
        return [(path, content) for path, content in read if "sections" in content]
    if not place.exists() or place.suffix != ".json":
        return []
    content = read_results(place)
    return [(place, content)] if "sections" in content else []


def figures(collected: Collected) -> list[Figure]:
    """All rows of all files, in their order. Raises ValueError where they disagree, see `agreed`."""
    return agreed([figure for path, content in collected for figure in _figures(path, content)])


def _figures(path: Path, content: dict[str, Any]) -> Iterator[Figure]:
    titles = {one["study"]: titled(one) for one in reversed(content["sections"])}
    for study, row in rows_of(content):
        setting, row = flat({**row.card, **row.params}), replace(row, params=flat(row.params))
        yield Figure(path, study, titles.get(study) or titled({"study": study}), row, setting)


def agreed(found: Sequence[Figure]) -> Sequence[Figure]:
    """The figures as they came. Raises ValueError where two of a kind say that other values are better."""
    known: dict[Kind, Figure] = {}
    for figure in found:
        first = known.setdefault(figure.kind, figure)
        if first.row.better != figure.row.better:
            ways = f"{WAYS[first.row.better]} in {first.path}, {WAYS[figure.row.better]} in {figure.path}"
            raise ValueError(f"{' '.join(figure.kind)}: {ways}; measure one of them again")
    return found


def titled(section: Mapping[str, Any]) -> str:
    """A study's title; one without has its name."""
    return section.get("title") or section["study"].replace("_", " ").capitalize()


def flat(card: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"versions": {"torch": "2"}} → {"versions.torch": "2"}."""
    lines: dict[str, Any] = {}
    for key, value in card.items():
        lines |= flat(value, f"{path}{key}.") if isinstance(value, dict) and value else {f"{path}{key}": value}
    return lines


def varying(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the lines in which these settings are not all the same, in their order; a missing line is null."""
    names = dict.fromkeys(name for setting in settings for name in setting)
    return [name for name in names if any(setting.get(name) != settings[0].get(name) for setting in settings)]


def run_of(checkpoint: str | None) -> str:
    """logs/train/<run>/checkpoints/last.ckpt → <run>; another file keeps its name behind the run's."""
    if not checkpoint:
        return ""
    path = Path(checkpoint)
    run = path.parent.parent.name if path.parent.name == "checkpoints" else path.parent.name
    return run if path.stem == "last" and run else f"{run}/{path.stem}".strip("/")


def number(value: float | None, error: float | None = None) -> str:
    """`867.9 ± 3.6`: two figures of the error, four of a value without one; `1.99e-06 ± 3e-08` where it is small."""
    if value is None or not math.isfinite(value):
        return "–" if value is None else str(value)
    known = error is not None and math.isfinite(error) and error > 1e-6 * abs(value)
    if value and abs(value) < 1e-3:
        return f"{value:.2e}" + (f" ± {error:.0e}" if known else "")
    scale = error if known else abs(value)
    digits = max(0, (1 if known else 3) - math.floor(math.log10(scale))) if scale else 0
    digits = min(digits, 6)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def written(row: Row) -> list[str]:
    """Value ± standard error, or with its interval, and what real images give in its place, ± the sd of one draw."""
    beside = "; ".join(f"{kind} {number(one.value, one.sd)}" for kind, one in row.anchors.items())
    if row.interval and row.value is not None:
        low, high = (number(end) for end in row.interval)
        return [f"{number(row.value)} ({low} to {high})", beside]
    return [number(row.value, row.error), beside]


def said(name: str, value: Any) -> str:
    """A setting's value as a person writes it: Eta(eta=0.0) → η = 0; Uniform() → uniform."""
    if name == "eta" and isinstance(value, int | float):
        return f"η = {value:g}"
    if value == "SigmaHat()":
        return "σ̂"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, str) and (call := re.fullmatch(r"([A-Z]\w*)\((.*)\)", value)):
        return _called(*call.groups())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _called(name: str, arguments: str) -> str:
    if name == "Eta" and (eta := re.fullmatch(r"eta=(\d+(?:\.\d*)?(?:e[+-]?\d+)?)", arguments)):
        return f"η = {float(eta[1]):g}"
    return name.lower() + (f" ({arguments})" if arguments else "")


def phrase(params: dict[str, Any]) -> str:
    """A sampler's setting in a line: S = 10, η = 0, uniform τ, clipped."""
    words = []
    for name, value in params.items():
        if name in ("sigma", "eta"):
            words.append(said(name, value))
        elif name == "tau":
            words.append(f"{said(name, value)} τ")
        elif name == "clip":
            words.append("clipped" if value is True else "not clipped" if value is False else f"clip {value}")
        elif name == "sampler":
            words += [] if value == "Generalized" else [str(value)]  # its σ says which
        elif name == "limit":
            words += ["no limit to what a step makes of the network's error"] if value is None else []
        else:
            words.append(f"{name.replace('_', ' ')} = {said(name, value)}")
    return ", ".join(words)
