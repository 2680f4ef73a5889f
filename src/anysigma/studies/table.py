"""DDIM's Table 1 from one checkpoint: distance over S and σ, all from the same x_T."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.diffusion.samplers.tau import TauRule
from anysigma.machine.distributed import is_first
from anysigma.metrics.fidelity import Features
from anysigma.report.figures import said
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import generated
from anysigma.studies.lineup import at_S, fixed, labels, lineup, short
from anysigma.studies.quality import RealImages, count, figure, rows

TITLE = "Steps and noise"
ABOUT = "One network, every sampler: the distance over the number of steps S."

# Song et al. 2021, Table 1, CIFAR-10: FID over S, quadratic τ; η unclipped, σ̂ clipped.
PAPER_STEPS = (10, 20, 50, 100, 1000)
PAPER = {
    "η = 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "η = 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "η = 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "η = 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "σ̂": (367.43, 133.37, 32.72, 9.99, 3.17),
}
SHOWN = 10  # images of a setting in the picture


class Cell(NamedTuple):
    """One cell of the table: under which τ and name, and the sampler with its S."""

    tau: str
    label: str
    sampler: Sampler
    S: int


@dataclass(frozen=True)
class SamplerTable(Study):
    """The grid S x sampler x τ: `sets` sets of `n` images a cell, every cell from the same x_T.

    `steps`: the S; those above T are left out, and `full` adds S = T. `samplers`: a row each, by any name; the given one
    has a row too, unless it equals another but for S. `taus`: τ rules by name, a table each; none: each sampler's own.
    A sampler whose τ is one list is one cell. The rest as for `Fidelity`.
    """

    steps: Sequence[int]
    samplers: Mapping[str, Sampler]
    taus: Mapping[str, TauRule]
    full: bool
    n: int | None
    sets: int
    splits: int
    seed: int
    block: int
    cache: str | None

    needs_features = True

    def __post_init__(self):
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"study.steps={list(self.steps)}: a list of whole numbers from 1")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features, folder: Path) -> Result:
        """Make every cell's images, measure, and print as the paper prints."""
        n, T = count(self.n, data, features), model.denoiser.process.T
        real = RealImages(data, features, self.cache)
        base = real.floor(n, self.splits) if is_first() else {}
        result = Result("table", TITLE, ABOUT, card={**model.card, "seed": self.seed, "block": self.block})
        result.card |= real.card(n, self.sets, self.splits) if is_first() else {}
        found, pictures = {}, {}
        for cell in self.cells(sampler, T):
            setting, what = describe(cell.sampler, T), ", ".join(filter(None, [cell.label, f"S = {cell.S}", cell.tau]))
            made = dict(seed=self.seed, block=self.block, folder=folder, what=what)
            images = generated(model, cell.sampler, n * self.sets, **made)
            if is_first():
                measured = rows(images.split(n), real, base, setting)
                result.rows += [replace(row, card=setting) for row in measured]
                found.setdefault(cell.tau, {})[cell.label, cell.S] = measured[0]
                pictures[cell.tau, cell.label, cell.S] = images[:SHOWN]
        for tau, cells in found.items():
            present(result, Grid(tau, cells), base, real)
            draw(result, Grid(tau, cells), pictures)
        return result

    def cells(self, given: Sampler, T: int) -> Iterator[Cell]:
        """Every cell, row by row."""
        for name, tau in (self.taus or {"": None}).items():
            every = lineup({key: along(one, tau) for key, one in self.samplers.items()}, along(given, tau)).values()
            for one, label in zip(every, labels([at_S(one, 1) for one in every], T), strict=True):
                yield from (Cell(name, label, at_S(one, S), S) for S in self.steps_of(one, T))

    def steps_of(self, sampler: Sampler, T: int) -> list[int]:
        """A row's columns: S ≤ T, rising, or the sampler's own."""
        if fixed(sampler):
            return [len(sampler.pairs(T))]
        return sorted({S for S in self.steps if S <= T} | ({T} if self.full else set())) or [T]


def along(sampler: Sampler, tau: TauRule | None) -> Sampler:
    """The sampler along another τ rule; one whose τ is a list keeps it."""
    return sampler if tau is None or fixed(sampler) else replace(sampler, tau=tau)


class Grid:
    """The cells of one τ: what stands in which row and column. `cells`: the distance by name and S."""

    def __init__(self, tau: str, cells: Mapping[tuple[str, int], Row]):
        self.tau, self.cells = tau, cells
        self.labels, self.steps = list(dict.fromkeys(label for label, _ in cells)), sorted({S for _, S in cells})
        settings = {label: row.params for (label, _), row in cells.items()}
        self.papers = {label: short(setting) for label, setting in settings.items() if short(setting) in PAPER}
        self.clips = {label: str(setting.get("clip", "")).lower() for label, setting in settings.items()}
        taus = {said("tau", setting.get("tau")) for setting in settings.values()}
        self.title = f", {taus.pop()} τ" if len(taus) == 1 else ""
        self.name = f"table_{tau}" if tau else "table"

    def row(self, label: str) -> dict[int, Row]:
        """One sampler's figures by S."""
        return {S: self.cells[label, S] for S in self.steps if (label, S) in self.cells}


def present(result: Result, found: Grid, base: dict[str, float], real: RealImages) -> None:
    """Both tables and the plot."""
    metric = real.features.metric
    comparable = metric == "fid" and type(real.data.source).__name__ == "CIFAR10"
    result.tables += [values(found, metric, base, comparable), changes(found)]
    result.plots[found.name] = curves(found, metric, base, comparable)


def draw(result: Result, found: Grid, pictures: Mapping[tuple[str, str, int], Tensor]) -> None:
    """The first images of every sampler at the fewest steps, and at the most."""
    for S in {found.steps[0], found.steps[-1]}:
        shown = [label for label in found.labels if S in found.row(label)]
        name = f"{found.name}_S{S}"
        result.pictures[name] = grid(torch.cat([pictures[found.tau, label, S] for label in shown]), columns=SHOWN)
        result.captions[name] = f"S = {S}{found.title}; a row each, from the same x_T: {'; '.join(shown)}."


def values(found: Grid, metric: str, base: dict, comparable: bool) -> Table:
    """The distance with its standard error; the paper's rows below where they are of the same data and features."""
    body = []
    for label in found.labels:
        row = found.row(label)
        body.append([label, found.clips[label], *(figure(row[S]) if S in row else "" for S in found.steps)])
    if comparable:
        body += [[f"{name} (paper)", "", *paper_cells(name, found.steps)] for name in dict.fromkeys(found.papers.values())]
    note = f"Floor {base['mean']:.2f} ± {base['sd']:.2f}: as many real images in place of the generated. Lower is better."
    return Table(f"{metric} over S{found.title}", ["sampler", "clip", *(f"S={S}" for S in found.steps)], body, note)


def paper_cells(name: str, steps: list[int]) -> list[str]:
    """Table 1's figures at these S; empty where it has none."""
    known = dict(zip(PAPER_STEPS, PAPER[name], strict=True))
    return [f"{known[S]:.2f}" if S in known else "" for S in steps]


def changes(found: Grid) -> Table:
    """Every cell against the first row's at the same S, ours and the paper's, and against the largest S of its row."""
    body, first, last = [], found.labels[0], found.steps[-1]
    top = found.row(first)
    for label in found.labels:
        row = found.row(label)
        ours = [change(row[S], top[S]) if S in row and S in top else "" for S in found.steps]
        paper = [paper_change(found.papers.get(label), found.papers.get(first), S) for S in found.steps]
        along = [change(row[S], row[last]) if S in row and last in row else "" for S in found.steps[:-1]]
        body.append([label, *(f"{a} ({b})" if a and b else a for a, b in zip(ours, paper, strict=True)), *along])
    steps = found.steps
    columns = ["sampler", *(f"S={S} to {first} (paper's)" for S in steps), *(f"S={S} to S={last}" for S in steps[:-1])]
    note = (
        "A change marked * exceeds two standard errors of the difference. In brackets: the same change in the paper's"
        " Table 1, CIFAR-10 with FID, another data set and another distance unless the title says so."
    )
    return Table(f"Relative change{found.title}", columns, body, note)


def change(row: Row, other: Row) -> str:
    """Signed percent, with a * where the difference exceeds two of its standard errors."""
    if row is other:
        return "–"
    relative = f"{100 * (row.value / other.value - 1):+.0f} %" if other.value else "n/a"
    if row.error is None or other.error is None:
        return relative
    return relative + ("*" if abs(row.value - other.value) > 2 * math.hypot(row.error, other.error) else "")


def paper_change(name: str | None, first: str | None, S: int) -> str:
    """The same percentage in Table 1, or nothing."""
    if name == first or name not in PAPER or first not in PAPER or S not in PAPER_STEPS:
        return ""
    i = PAPER_STEPS.index(S)
    return f"{100 * (PAPER[name][i] / PAPER[first][i] - 1):+.0f} %"


def curves(found: Grid, metric: str, base: dict, comparable: bool) -> Plot:
    """Distance against S, a curve each sampler, with the floor."""
    shown = []
    for label in found.labels:
        row = found.row(label)
        errors = [one.error for one in row.values()]
        shown.append(Curve(label, list(row), [one.value for one in row.values()], None if None in errors else errors))
    if comparable:
        papers = dict.fromkeys(found.papers.values())
        shown += [Curve(f"{name} (paper)", PAPER_STEPS, PAPER[name], style="--") for name in papers]
    shown.append(Curve("floor", [found.steps[0], found.steps[-1]], [base["mean"]] * 2, style="--"))
    caption = f"{metric} against the number of steps{found.title}, all from the same x_T."
    return Plot(caption, "S (steps)", metric, shown, log_x=True, log_y=True)
