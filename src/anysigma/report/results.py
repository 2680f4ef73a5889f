"""What a study found, as objects and as results.json."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from anysigma.data.patience import whole
from anysigma.machine.writing import written
from anysigma.metrics.anchors import Anchor
from anysigma.metrics.card import card_id
from anysigma.report.form import held
from anysigma.report.pictures import save_png
from anysigma.report.plots import Plot, drawn

FORMAT = 3
AT_MOST = 1 << 28  # bytes of a results.json


@dataclass
class Row:
    """One figure: a metric's value, and all that a reader needs to rank, draw and name it.

    `value` ± `error`, one standard error, from `n` images (draws, repeats); `sets`: its value for each of the disjoint
    sets that it is the mean of; `interval`: 95 %, where a standard error would not do (a share). `params`: the settings
    that tell it from the study's other rows. `better`: -1 where lower is better, 1 where higher is, 0 where neither.
    `anchors`: what real images give in place of the generated, each by its name. `label`: the metric as a person reads it,
    by default its name in words; `features`: those it was taken in. `key`: one of the few that a page shows first. `card`:
    lines of its own beside the Result's. Raises ValueError for another `better`.
    """

    metric: str
    value: float | None
    error: float | None = None
    n: int | None = None
    params: dict[str, Any] = field(default_factory=dict)
    better: int = 0
    sets: list[float] = field(default_factory=list)
    interval: tuple[float, float] | None = None
    anchors: dict[str, Anchor] = field(default_factory=dict)
    label: str = ""
    features: str = ""
    key: bool = False
    card: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.better not in (-1, 0, 1):
            raise ValueError(f"{self.metric}: better={self.better}: -1 (lower is), 0 (neither) or 1 (higher is)")
        self.label = self.label or re.sub(r"(?<=[a-z]{2})_", " ", self.metric)

    @property
    def name(self) -> str:
        """The metric in words: Fréchet distance in digits features."""
        return f"{self.label} in {self.features} features" if self.features else self.label

    @property
    def beside(self) -> str:
        """The anchors in words: real images 2.50 (one draw ± 0.91, 200 draws); held-out images 3.50."""
        return "; ".join(f"{kind} {anchor}" for kind, anchor in self.anchors.items())


@dataclass(frozen=True)
class Table:
    """A table as a person reads it: cells are text, and `note` says what they are."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def text(self) -> str:
        """The table in fixed-width columns, for a terminal."""
        grid = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(row[i]) for row in grid) for i in range(len(self.columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in grid]
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])


@dataclass
class Result:
    """What one study found: figures, and what there is to look at.

    `title` and `about`: a heading and a sentence for a page, by default the study's name. `card`: the protocol of all
    `rows`. `pictures` by file name: uint8 `[H, W, 3]`, or `[F, H, W, 3]` for an animation of F frames; `captions` by the
    same names. `lines`: what is printed. `arrays` by file name: what figures were formed from, an image or a term each.
    """

    study: str
    title: str = ""
    about: str = ""
    rows: list[Row] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    plots: dict[str, Plot] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    arrays: dict[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def save_arrays(result: Result, folder: Path) -> None:
    """`folder`/<name>.npz for each, written aside and renamed."""
    for name, arrays in result.arrays.items():
        with written(folder / f"{name}.npz") as aside, open(aside, "wb") as file:
            np.savez_compressed(file, **arrays)


def save_pictures(result: Result, folder: Path) -> list[Path]:
    """Every picture, animation and plot as `folder`/<name>.png."""
    pictures = {**result.pictures, **{name: drawn(plot) for name, plot in result.plots.items()}}
    return [save_png(picture, folder / f"{name}.png") for name, picture in pictures.items()]


def write_results(path: Path, results: Sequence[Result], **facts: Any) -> None:
    """results.json, written aside and renamed: cards by their number, rows that point to them, a section a study."""
    cards, rows = {}, []
    for result in results:
        for row in result.rows:
            card = result.card | row.card
            cards[card_id(card)] = card
            rows.append({"study": result.study, **asdict(row), "card": card_id(card)})
    content = {"format": FORMAT, **facts, "cards": cards, "rows": rows, "sections": [section(one) for one in results]}
    with written(path) as aside:
        aside.write_text(json.dumps(content, indent=1, default=str))


def section(result: Result) -> dict[str, Any]:
    """All that a page needs of one study: its card, lines, tables, plots as numbers, pictures as files beside it."""
    return {
        "study": result.study,
        "title": result.title,
        "about": result.about,
        "card": result.card,
        "lines": result.lines,
        "tables": [asdict(table) for table in result.tables],
        "plots": {name: asdict(plot) for name, plot in result.plots.items()},
        "pictures": {name: {"file": f"{name}.png", "caption": result.captions.get(name, "")} for name in result.pictures},
    }


def read_results(path: Path) -> dict[str, Any]:
    """results.json of this format and form, an evaluation's or a run's. Raises ValueError for anything else, in one line."""
    try:
        results = json.loads(whole(path, at_most=AT_MOST))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no results.json of ours ({error})") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        found = results.get("format") if isinstance(results, dict) else "?"
        again = "measure again: remove the file and repeat the command that made it"
        raise ValueError(f"{path}: format {str(found)[:50]}, this version reads {FORMAT}; {again}")
    try:
        return held(results)
    except ValueError as error:
        raise ValueError(f"{path}: no results.json of ours ({error})") from None


def rows_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Row]]:
    """The rows of a results.json, each with its study and its whole card."""
    names = {one.name for one in fields(Row)}
    for row in content["rows"]:
        known = {name: value for name, value in row.items() if name in names}
        known["anchors"] = {kind: Anchor(**one) for kind, one in row["anchors"].items()}
        yield row["study"], Row(**{**known, "card": content["cards"].get(row["card"], {})})
