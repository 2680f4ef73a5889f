"""What a study is given and what it returns."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anysigma.denoiser import Denoiser
from anysigma.metrics.card import card_id
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


@dataclass
class Result:
    """Rows of results.json without their card's number, the pictures by name, and the card of all rows."""

    rows: list[dict[str, Any]]
    card: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


class Study(Protocol):
    """Something evaluate.py can do with a checkpoint."""

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Do it; whatever is kept on disk lies below `folder`."""
        ...


def describe(sampler: Sampler, T: int) -> dict[str, Any]:
    """A sampler setting as plain values: S, σ rule, τ rule, clip."""
    facts = {name: getattr(sampler, name) for name in ("sigma", "tau", "clip") if hasattr(sampler, name)}
    plain = {name: value if isinstance(value, bool) else repr(value) for name, value in facts.items()}
    return {"sampler": type(sampler).__name__, "S": len(sampler.pairs(T)), **plain}


def write_results(path: Path, results: Sequence[Result], **facts: Any) -> None:
    """results.json, written aside and renamed: cards by their number, rows that point to them."""
    cards = {card_id(result.card): result.card for result in results}
    rows = [{**row, "card": card_id(result.card)} for result in results for row in result.rows]
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps({"format": FORMAT, **facts, "cards": cards, "rows": rows}, indent=1))
    os.replace(aside, path)


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
