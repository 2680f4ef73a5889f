"""DDIM's Table 1 from one checkpoint: distance over S and σ, all from the same x_T."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat, SigmaRule
from anysigma.diffusion.samplers.tau import TauRule
from anysigma.machine.distributed import rank_and_world
from anysigma.metrics.fidelity import Features
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model
from anysigma.studies.generated import generated
from anysigma.studies.quality import RealImages, count, figure, rows

TITLE = "Steps and noise"
ABOUT = "One network, every sampler: the distance over the number of steps S and the noise η."

# Song et al. 2021, Table 1, CIFAR-10: FID over S, quadratic τ; η unclipped, σ̂ clipped.
PAPER_STEPS = (10, 20, 50, 100, 1000)
PAPER = {
    "η=0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "η=0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "η=0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "η=1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "σ̂": (367.43, 133.37, 32.72, 9.99, 3.17),
}
SHOWN = 10  # images of a setting in the picture


@dataclass(frozen=True)
class Setting:
    """One cell of the table."""

    tau: str
    sigma: str
    sampler: Generalized

    @property
    def steps(self) -> int:
        """S."""
        return self.sampler.steps or 0


@dataclass(frozen=True)
class SamplerTable:
    """The grid S x σ x τ: `sets` sets of `n` images a cell, every cell from the same x_T.

    `steps`: the S; those above T are left out, and `full` adds S = T. `etas`, and `sigma_hat` for DDPM's larger
    variance; `eta_clip` and `sigma_hat_clip` say which of them clip predicted x_0 (the official code: σ̂ alone).
    `taus`: τ rules by name. The rest as for `Fidelity`.
    """

    steps: Sequence[int]
    etas: Sequence[float]
    sigma_hat: bool
    eta_clip: bool
    sigma_hat_clip: bool
    taus: Mapping[str, TauRule]
    full: bool
    n: int | None
    sets: int
    splits: int
    seed: int
    block: int
    cache: str | None

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def __post_init__(self):
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"study.steps={list(self.steps)}: a list of whole numbers from 1")
        for eta in self.etas:
            Eta(eta)
        if not self.etas and not self.sigma_hat:
            raise ValueError("study.etas=[] and study.sigma_hat=false: no row is left")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Features, folder: Path) -> Result:
        """Make every cell's images, measure, and print as the paper prints."""
        n, T = count(self.n, data, features), model.denoiser.process.T
        real = RealImages(data, features, self.cache)
        first = rank_and_world()[0] == 0
        base = real.floor(n, self.splits) if first else {}
        result = Result("table", TITLE, ABOUT, card={**model.card, "seed": self.seed, "block": self.block})
        result.card |= real.card(n, self.sets, self.splits) if first else {}
        cells, pictures = {}, {}
        for cell in self.settings(T):
            what = f"{cell.sigma}, S={cell.steps}, {cell.tau}"
            images = generated(
                model, cell.sampler, n * self.sets, seed=self.seed, block=self.block, folder=folder, what=what
            )
            if first:
                setting = describe(cell.sampler, T)
                found = rows(images.split(n), real, base, setting)
                result.rows += [replace(row, card=setting) for row in found]
                cells[cell.tau, cell.sigma, cell.steps] = found[0]
                pictures[cell.tau, cell.sigma, cell.steps] = images[:SHOWN]
        if first:
            self._present(result, cells, pictures, base, real)
        return result

    def settings(self, T: int) -> Iterator[Setting]:
        """Every cell, row by row."""
        rules: list[tuple[str, SigmaRule, bool]] = [(f"η={eta:g}", Eta(eta), self.eta_clip) for eta in self.etas]
        rules += [("σ̂", SigmaHat(), self.sigma_hat_clip)] if self.sigma_hat else []
        for tau, rule in self.taus.items():
            for name, sigma, clip in rules:
                for S in self.steps_of(T):
                    yield Setting(tau, name, Generalized(steps=S, sigma=sigma, tau=rule, clip=clip))

    def steps_of(self, T: int) -> list[int]:
        """The columns: S ≤ T, rising."""
        return sorted({S for S in self.steps if S <= T} | ({T} if self.full else set())) or [T]

    def _present(self, result: Result, cells: dict, pictures: dict, base: dict[str, float], real: RealImages) -> None:
        metric = real.features.metric
        comparable = metric == "fid" and type(real.data.source).__name__ == "CIFAR10"
        steps, sigmas = sorted({S for _, _, S in cells}), list(dict.fromkeys(sigma for _, sigma, _ in cells))
        for tau in self.taus:
            mine = {(sigma, S): row for (t, sigma, S), row in cells.items() if t == tau}
            result.tables.append(values(mine, sigmas, steps, tau, metric, base, self._clips, comparable))
            result.tables.append(changes(mine, sigmas, steps, tau))
            result.plots[f"table_{tau}"] = curves(mine, sigmas, steps, tau, metric, base, comparable)
            for S in {steps[0], steps[-1]}:
                name = f"table_{tau}_S{S}"
                result.pictures[name] = grid(torch.cat([pictures[tau, sigma, S] for sigma in sigmas]), columns=SHOWN)
                result.captions[name] = f"S = {S}, {tau} τ; a row each, from the same x_T: {', '.join(sigmas)}."

    def _clips(self, sigma: str) -> bool:
        return self.sigma_hat_clip if sigma == "σ̂" else self.eta_clip


def values(
    cells: dict, sigmas: list[str], steps: list[int], tau: str, metric: str, base: dict, clips: Any, comparable: bool
) -> Table:
    """The distance with its standard error; the paper's rows below where they are of the same data and features."""
    body = [[sigma, str(clips(sigma)).lower(), *(figure(cells[sigma, S]) for S in steps)] for sigma in sigmas]
    if comparable:
        body += [[f"{name} (paper)", "", *paper_cells(name, steps)] for name in sigmas if name in PAPER]
    title = f"{metric} over S, {tau} τ"
    note = f"Floor {base['mean']:.2f} ± {base['sd']:.2f}: as many real images in place of the generated. Lower is better."
    return Table(title, ["σ", "clip", *(f"S={S}" for S in steps)], body, note)


def paper_cells(name: str, steps: list[int]) -> list[str]:
    """Table 1's figures at these S; empty where it has none."""
    known = dict(zip(PAPER_STEPS, PAPER[name], strict=True))
    return [f"{known[S]:.2f}" if S in known else "" for S in steps]


def changes(cells: dict, sigmas: list[str], steps: list[int], tau: str) -> Table:
    """Every cell against the first row's at the same S, ours and the paper's, and against the largest S of its row."""
    body = []
    for sigma in sigmas:
        ours = [change(cells[sigma, S], cells[sigmas[0], S]) for S in steps]
        paper = [paper_change(sigma, sigmas[0], S) for S in steps]
        along = [change(cells[sigma, S], cells[sigma, steps[-1]]) for S in steps[:-1]]
        body.append([sigma, *(f"{a} ({b})" if b else a for a, b in zip(ours, paper, strict=True)), *along])
    columns = ["σ", *(f"S={S} to {sigmas[0]} (paper's)" for S in steps), *(f"S={S} to S={steps[-1]}" for S in steps[:-1])]
    note = (
        "A change marked * exceeds two standard errors of the difference. In brackets: the same change in the paper's"
        " Table 1, CIFAR-10 with FID, another data set and another distance unless the title says so."
    )
    return Table(f"Relative change, {tau} τ", columns, body, note)


def change(row: Row, other: Row) -> str:
    """Signed percent, with a * where the difference exceeds two of its standard errors."""
    if row is other:
        return "–"
    relative = f"{100 * (row.value / other.value - 1):+.0f} %" if other.value else "n/a"
    if row.error is None or other.error is None:
        return relative
    return relative + ("*" if abs(row.value - other.value) > 2 * math.hypot(row.error, other.error) else "")


def paper_change(sigma: str, first: str, S: int) -> str:
    """The same percentage in Table 1, or nothing."""
    if sigma == first or sigma not in PAPER or first not in PAPER or S not in PAPER_STEPS:
        return ""
    i = PAPER_STEPS.index(S)
    return f"{100 * (PAPER[sigma][i] / PAPER[first][i] - 1):+.0f} %"


def curves(cells: dict, sigmas: list[str], steps: list[int], tau: str, metric: str, base: dict, comparable: bool) -> Plot:
    """Distance against S, a curve each σ, with the floor."""
    found = []
    for sigma in sigmas:
        row = [cells[sigma, S] for S in steps]
        errors = [r.error for r in row]
        found.append(Curve(sigma, steps, [r.value for r in row], None if None in errors else errors))
    if comparable:
        found += [Curve(f"{s} (paper)", PAPER_STEPS, PAPER[s], style="--") for s in sigmas if s in PAPER]
    found.append(Curve("floor", [steps[0], steps[-1]], [base["mean"]] * 2, style="--"))
    caption = f"{metric} against the number of steps, {tau} τ, all from the same x_T."
    return Plot(caption, "S (network evaluations an image)", metric, found, log_x=True, log_y=True)
