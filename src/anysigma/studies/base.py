"""What a study is given and what it returns."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from anysigma.denoiser import Denoiser
from anysigma.metrics.card import card_id
from anysigma.pictures import save_png
from anysigma.plots import Plot, drawn
from anysigma.samplers.base import Sampler

FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A denoiser ready to be sampled, and what every figure made with it must say.

    `shape` (C, H, W); `card`: weights, step, schedule, precision.
    """

    denoiser: Denoiser
    shape: Sequence[int]
    card: dict[str, Any]


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

    `title` and `about`: a heading and a sentence for a page, by default the study's name. `rows`: figures of
    results.json without their card's number; a row may bring a "card" of its own, which is added to `card`, that of
    all rows. `pictures` by file name: uint8 `[H, W, 3]`, or `[F, H, W, 3]` for an animation of F frames; `captions` by
    the same names. `lines`: what is printed.
    """

    study: str
    title: str = ""
    about: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    plots: dict[str, Plot] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)


class Study(Protocol):
    """Something evaluate.py can do with a checkpoint. It may ask for less than it is given."""

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result | Iterable[Result]:
        """Do it; whatever is kept on disk lies below `folder`. Every process calls it; rank 0's Result counts."""
        ...


def describe(sampler: Sampler, T: int) -> dict[str, Any]:
    """A sampler setting as plain values: S, σ rule, τ rule, clip."""
    facts = {name: getattr(sampler, name) for name in ("sigma", "tau", "clip") if hasattr(sampler, name)}
    plain = {name: value if isinstance(value, bool) else repr(value) for name, value in facts.items()}
    return {"sampler": type(sampler).__name__, "S": len(sampler.pairs(T)), **plain}


def weights_digest(denoiser: Denoiser) -> str:
    """16 hex digits of the sha256 over all weights: what a figure's images were made by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(denoiser.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def save_pictures(result: Result, folder: Path) -> list[Path]:
    """Every picture, animation and plot as `folder`/<name>.png."""
    pictures = {**result.pictures, **{name: drawn(plot) for name, plot in result.plots.items()}}
    return [save_png(picture, folder / f"{name}.png") for name, picture in pictures.items()]


def write_results(path: Path, results: Sequence[Result], **facts: Any) -> None:
    """results.json, written aside and renamed: cards by their number, rows that point to them, a section a study."""
    cards, rows = {}, []
    for result in results:
        for row in result.rows:
            card = result.card | row.get("card", {})
            cards[card_id(card)] = card
            rows.append({**row, "card": card_id(card)})
    aside = path.with_suffix(".part")
    content = {"format": FORMAT, **facts, "cards": cards, "rows": rows, "sections": [section(one) for one in results]}
    aside.write_text(json.dumps(content, indent=1, default=str))
    os.replace(aside, path)


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
    """results.json of this format. Raises ValueError for anything else."""
    try:
        results = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no results.json of ours ({error})") from None
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {results.get('format') if isinstance(results, dict) else '?'}, this version reads {FORMAT}"
        )
    return results
