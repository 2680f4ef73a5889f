"""DDIM's Table 1 from one checkpoint: distance over S and σ, all from the same x_T."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anysigma.diffusion.samplers.amplification import Amplifies
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.diffusion.samplers.tau import TauRule
from anysigma.machine.distributed import say
from anysigma.metrics.fidelity import Features
from anysigma.metrics.statistics import Difference
from anysigma.report.against_steps import anchored
from anysigma.report.figures import phrase, said
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.report.verdict import counted, difference, rule
from anysigma.studies.base import CannotServe, Model, Study
from anysigma.studies.generated import cost, generated
from anysigma.studies.lineup import at_S, fixed, labels, lineup, short
from anysigma.studies.quality import RealImages, count, figure, held_to_counts

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
PAPER_N = 50_000  # generated, and training images
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
        held_to_counts(self.n, self.sets, self.splits)

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features, folder: Path) -> Result:
        """Make every cell's images, measure, and print as the paper prints."""
        T, real = model.denoiser.process.T, RealImages(data, features, count(self.n, data), self.splits, self.cache)
        result = Result("table", TITLE, ABOUT, card={**model.card, "seed": self.seed, "block": self.block})
        result.card |= real.card(self.sets)
        cells = self.allowed(list(self.cells(sampler, T)), model, result)
        each, every = real.n * self.sets, [cell.sampler for cell in cells]
        say(cost(model, every, each, self.block, f"{len(cells)} settings, {each} images each"))
        found, pictures = {}, {}
        for cell in cells:
            setting, what = describe(cell.sampler, T), ", ".join(filter(None, [cell.label, f"S = {cell.S}", cell.tau]))
            images = generated(model, cell.sampler, each, seed=self.seed, block=self.block, folder=folder, what=what)
            measured = real.rows(real.sets(images.vectors(features)), setting)
            result.rows += [replace(row, card=setting) for row in measured]
            found.setdefault(cell.tau, {})[cell.label, cell.S] = measured[0]
            pictures[cell.tau, cell.label, cell.S] = images.some(range(min(SHOWN, each)))
        for tau, rows in found.items():
            grid = Grid(tau, rows, real, averaged=str(model.card.get("weights", "")).startswith("ema"))
            result.tables += [values(grid), changes(grid)]
            result.plots[grid.name] = curves(grid)
            draw(result, grid, pictures)
        best(result, real.features.metric)
        return result

    def allowed(self, cells: Sequence[Cell], model: Model, result: Result) -> list[Cell]:
        """The cells without those that a step refuses, each with a line in its place. Raises CannotServe where all are."""
        found = []
        for cell in cells:
            try:
                cell.sampler.check(model.denoiser.process, model.denoiser.parameterization)
                found.append(cell)
            except Amplifies as why:
                name = ", ".join(filter(None, [cell.label, f"S = {cell.S}", cell.tau]))
                result.lines.append(f"{name} is left out: {why}")
        if not found:
            raise CannotServe(result.lines[-1])
        return found

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
    """The cells of one τ: what stands in which row and column. `cells`: the distance by name and S.

    `averaged`: of the averaged weights, as the paper's.
    """

    def __init__(self, tau: str, cells: Mapping[tuple[str, int], Row], real: RealImages, averaged: bool = True):
        self.tau, self.cells, self.metric = tau, cells, real.features.metric
        self.labels, self.steps = list(dict.fromkeys(label for label, _ in cells)), sorted({S for _, S in cells})
        settings = {label: row.params for (label, _), row in cells.items()}
        self.papers = {label: short(one) for label, one in settings.items() if averaged and papers_own(one, real)}
        self.clips = {label: str(setting.get("clip", "")).lower() for label, setting in settings.items()}
        taus = {said("tau", setting.get("tau")) for setting in settings.values()}
        self.title = f", {taus.pop()} τ" if len(taus) == 1 else ""
        self.name = f"table_{tau}" if tau else "table"

    def row(self, label: str) -> dict[int, Row]:
        """One sampler's figures by S."""
        return {S: self.cells[label, S] for S in self.steps if (label, S) in self.cells}


def papers_own(setting: Mapping[str, Any], real: RealImages) -> bool:
    """Whether this is what the paper measured: 50,000 images, FID to CIFAR-10's training images, its τ, σ and clip."""
    data = (real.features.metric, type(real.data.source).__name__, len(real.data.train), real.n)
    own_weights = data[0] == "fid" and real.features.card().get("features_weights") == "published"
    own = setting.get("tau") == "Quadratic()" and setting.get("clip") == (short(setting) == "σ̂")
    return data == ("fid", "CIFAR10", PAPER_N, PAPER_N) and own_weights and own and short(setting) in PAPER


def draw(result: Result, found: Grid, pictures: Mapping[tuple[str, str, int], Tensor]) -> None:
    """The first images of every sampler at the fewest steps, and at the most."""
    for S in {found.steps[0], found.steps[-1]}:
        shown = [label for label in found.labels if S in found.row(label)]
        name = f"{found.name}_S{S}"
        result.pictures[name] = grid(torch.cat([pictures[found.tau, label, S] for label in shown]), columns=SHOWN)
        result.captions[name] = f"S = {S}{found.title}; a row each, from the same x_T: {'; '.join(shown)}."


def values(found: Grid) -> Table:
    """The distance with its standard error; the paper's rows below where they are of the same protocol."""
    body = []
    for label in found.labels:
        row = found.row(label)
        body.append([label, found.clips[label], *(figure(row[S]) if S in row else "" for S in found.steps)])
    body += [[f"{name} (paper)", "", *paper_cells(name, found.steps)] for name in dict.fromkeys(found.papers.values())]
    first = next(iter(found.cells.values()))
    note = f"Lower is better. {first.n} real images in their place: {first.beside}."
    return Table(f"{found.metric} over S{found.title}", ["sampler", "clip", *(f"S={S}" for S in found.steps)], body, note)


def paper_cells(name: str, steps: list[int]) -> list[str]:
    """Table 1's figures at these S; empty where it has none."""
    known = dict(zip(PAPER_STEPS, PAPER[name], strict=True))
    return [f"{known[S]:.2f}" if S in known else "" for S in steps]


def changes(found: Grid) -> Table:
    """Every cell against the first row's at the same S, and against the largest S of its row; the paper's in brackets."""
    body, verdicts, first, last = [], [], found.labels[0], found.steps[-1]
    top = found.row(first)
    for label in found.labels:
        row = found.row(label)
        ours = [change(row[S], top[S], verdicts) if S in row and S in top else "" for S in found.steps]
        paper = [paper_change(found.papers.get(label), found.papers.get(first), S) for S in found.steps]
        along = [change(row[S], row[last], verdicts) if S in row and last in row else "" for S in found.steps[:-1]]
        body.append([label, *(f"{a} ({b})" if a and b else a for a, b in zip(ours, paper, strict=True)), *along])
    steps, whose = found.steps, " (paper's)" if first in found.papers else ""
    columns = ["sampler", *(f"S={S} to {first}{whose}" for S in steps), *(f"S={S} to S={last}" for S in steps[:-1])]
    note = f"A change marked * leaves 0 out of the {rule(verdicts)}. {counted(verdicts)}"
    return Table(f"Relative change{found.title}", columns, body, note)


def change(row: Row, other: Row, verdicts: list[Difference | None]) -> str:
    """Signed percent, with a * where the two can be told apart; the verdict is added to the others."""
    if row is other:
        return "–"
    verdicts.append(difference(row, other, same_noise=True))
    relative = f"{100 * (row.value / other.value - 1):+.0f} %" if other.value else "n/a"
    return relative + ("*" if verdicts[-1] is not None and verdicts[-1].distinct else "")


def paper_change(name: str | None, first: str | None, S: int) -> str:
    """The same percentage in Table 1, or nothing."""
    if name == first or name not in PAPER or first not in PAPER or S not in PAPER_STEPS:
        return ""
    i = PAPER_STEPS.index(S)
    return f"{100 * (PAPER[name][i] / PAPER[first][i] - 1):+.0f} %"


def curves(found: Grid) -> Plot:
    """Distance against S, a curve each sampler, with what real images give."""
    shown = []
    for label in found.labels:
        row = found.row(label)
        errors = [one.error for one in row.values()]
        shown.append(Curve(label, list(row), [one.value for one in row.values()], None if None in errors else errors))
    papers = dict.fromkeys(found.papers.values())
    shown += [Curve(f"{name} (paper)", PAPER_STEPS, PAPER[name], style="--") for name in papers]
    shown += anchored(next(iter(found.cells.values())).anchors, found.steps)
    caption = f"{found.metric} against the number of steps{found.title}, all from the same x_T."
    return Plot(caption, "S (steps)", found.metric, shown, log_x=True, log_y=True)


def best(result: Result, metric: str) -> None:
    """The smallest distance becomes one of the page's first figures, and a line says what it cannot be told from."""
    cells = [row for row in result.rows if row.metric == metric]
    least = min(cells, key=lambda row: row.value)
    result.rows = [replace(row, key=True) if row is least else row for row in result.rows]
    verdicts = [difference(row, least, same_noise=True) for row in cells if row is not least]
    alike = sum(verdict is not None and not verdict.distinct for verdict in verdicts)
    told = f"; not distinguishable from {alike} of the others, fewer than if it had not been chosen" if any(verdicts) else ""
    where = f"{phrase(least.params)}, chosen from {len(cells)} by its value, so rather too small"
    result.lines.append(f"smallest {metric}: {figure(least)} at {where}{told}")
