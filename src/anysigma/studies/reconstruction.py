"""Images encoded to x_T and decoded again: DDIM section 5.4, Table 2."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import from_uint8, to_uint8
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.amplification import Amplifies
from anysigma.diffusion.samplers.base import SIGNAL_LEFT, Sampler, describe
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import UpTo
from anysigma.machine.distributed import gathered, is_first, my_share, spread
from anysigma.machine.progress import progress
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.pictures import grid
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import CannotServe, Model, Study
from anysigma.studies.lineup import each_S

TITLE = "Reconstruction"
ABOUT = "Held-out images, encoded to x_T by DDIM and decoded again: what is lost."

# DDIM Table 2: CIFAR-10 test images, mean squared error per dimension on [0, 1], by S.
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}


@dataclass(frozen=True)
class Reconstruction(Study):
    """Mean squared error per dimension on [0, 1] of decode(encode(x_0)), η = 0 and unclipped both ways, over S.

    `n`: held-out images, the first ones; `steps`: the S to try, those above T are left out; `block` images are computed
    at once; `shown`: images in the picture. τ follows the given sampler's rule. Where some of all T steps would multiply
    the network's error beyond the sampler's limit (eps under a schedule whose last β is capped: 30.6 times from T to T-1),
    every S keeps to 1..t instead, t the last step with α_t ≥ 0.01: above it x_t is noise to the eye, and there is nothing
    to encode but the network's error. An S that is refused even so is left out, with the reason. Every rank makes its share.
    """

    n: int
    steps: Sequence[int]
    block: int
    shown: int

    in_float32 = True

    def __post_init__(self):
        if self.n < 1:
            raise ValueError(f"n={self.n}: at least 1 image is needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Encode, decode, compare. Raises CannotServe without encoder or τ rule, or where every S is refused."""
        if not isinstance(sampler, Generalized):
            raise CannotServe(f"DDIM's step encodes, and {type(sampler).__name__} has no encoder; use sampler=ddim")
        T = model.denoiser.process.T
        every = each_S(sampler, self.steps, T)
        ddim, lines = resolved(replace(sampler, sigma=Eta(0.0), clip=False), model.denoiser)
        ways, refused = allowed([replace(ddim, steps=S) for S in every], model.denoiser)
        card = {**model.card, **describe(ddim, T), "S": list(ways)}
        card |= {
            "scale": "[0, 1], neither rounded nor clipped",
            "reference": f"held-out images, the first {min(self.n, len(data.held_out))}",
            "data_hash": data.hash,
            "block": self.block,
        }
        result = Result("reconstruction", TITLE, ABOUT, card=card, lines=lines + refused)
        x_0 = from_uint8(data.held_out[: self.n])
        found = {S: self._there_and_back(model, way, x_0) for S, way in ways.items()}
        if is_first():
            errors = {S: squared_error(back, x_0) for S, back in found.items()}
            papers = {S: PAPER[S] for S in ways if S in PAPER and type(data.source).__name__ == "CIFAR10"}
            report(result, errors, squared_error(x_0, x_0.mean(0)).mean().item(), papers)
            rows = [x_0, *found.values()]
            columns = min(self.shown, len(x_0))
            result.pictures["reconstruction"] = grid(to_uint8(torch.cat([row[:columns] for row in rows])), columns)
            result.captions["reconstruction"] = f"Held-out images above; below, decoded at S = {listed(found)}, from above."
        return result

    @torch.inference_mode()
    def _there_and_back(self, model: Model, ddim: Generalized, x_0: Tensor) -> Tensor:
        block = spread(len(x_0), self.block)
        ks = my_share(range(len(x_0)), block)
        blocks = x_0[ks].split(block) if ks else ()
        found = [
            there_and_back(model, ddim, some.to(model.denoiser.device)).cpu()
            for some in progress(blocks, len(blocks), f"reconstruction, S = {ddim.steps}")
        ]
        return gathered(ks, torch.cat([x_0[:0], *found]))


def resolved(ddim: Generalized, denoiser: Denoiser) -> tuple[Generalized, list[str]]:
    """The sampler, its τ kept to 1..t, α_t ≥ SIGNAL_LEFT, where all T steps would be refused, and a line that says so."""
    q = denoiser.process
    try:
        replace(ddim, steps=None).check(q, denoiser.parameterization)
    except Amplifies as why:
        last = max(1, int((q.schedule.alpha >= SIGNAL_LEFT).sum()) - 1)
        reason, _, _ = str(why).partition(",")
        line = f"reconstruction: τ is taken from 1..{last}, α = {q.alpha(last):.2g} at its end, not from 1..{q.T}: {reason}"
        return replace(ddim, tau=UpTo(ddim.tau, last)), [line]
    return ddim, []


def allowed(ways: Sequence[Generalized], denoiser: Denoiser) -> tuple[dict[int, Generalized], list[str]]:
    """The samplers by the S they take, and a line for each that is refused either way. Raises CannotServe where all are."""
    q, found, lines = denoiser.process, {}, []
    for way in ways:
        try:
            way.check(q, denoiser.parameterization)
            way.check_encoding(q, denoiser.parameterization)
            found[len(way.pairs(q.T))] = way
        except Amplifies as why:
            lines.append(f"reconstruction: S = {way.steps} is left out: {why}")
    if not found:
        raise CannotServe(lines[-1])
    return found, lines


def there_and_back(model: Model, ddim: Generalized, x_0: Tensor) -> Tensor:
    """decode(encode(x_0)), DDIM section 5.4; at η = 0 no noise is drawn."""
    code = ddim.encode(model.denoiser, x_0)
    with warnings.catch_warnings():  # of a start at pure noise: this one starts at a code
        warnings.filterwarnings("ignore", "sampling starts at")
        return ddim(model.denoiser, code, lambda: torch.zeros_like(x_0))


def squared_error(x: Tensor, y: Tensor) -> Tensor:
    """Mean over dimensions of (x - y)² on [0, 1], so a quarter of that on [-1, 1]; `[B]`, float64."""
    return ((x.double() - y.double()) / 2).square().flatten(1).mean(1)


def report(result: Result, errors: dict[int, Tensor], variance: float, papers: dict[int, float]) -> None:
    """Rows, table, plot and a line from the `[n]` errors at every S.

    `variance`: of the images, on [0, 1]; `papers`: what stands in the paper at these S, where the images are its own.
    """
    found = {S: mean_and_error(each) for S, each in errors.items()}
    for S, (value, error) in found.items():
        facts = {"label": "Mean squared error", "key": max(found) == S}
        result.rows.append(Row("reconstruction_mse", value, error, len(errors[S]), {"S": S, "eta": 0.0}, -1, **facts))
    result.arrays["reconstruction"] = {f"squared_error_S{S}": each.numpy() for S, each in errors.items()}
    result.tables.append(table(errors, found, papers))
    result.plots["reconstruction_error"] = plot(found, papers)
    S, last = next(reversed(found.items()))
    result.lines.append(
        f"reconstruction at S = {S}: {figure(*last)} a dimension on [0, 1]; the images' own variance is {variance:.2e}"
    )


def table(errors: dict[int, Tensor], found: dict[int, tuple[float, float | None]], papers: dict[int, float]) -> Table:
    """Ours, beside the paper's where there are any."""
    columns, note = ["S", "mean", "median image"], "mean squared error a dimension on [0, 1], ± standard error over images"
    rows = [[str(S), figure(*found[S]), f"{each.median():.2e}"] for S, each in errors.items()]
    if papers:
        columns, rows = [*columns, "paper"], [[*row, f"{papers.get(int(row[0]), '-')}"] for row in rows]
    return Table("Reconstruction (DDIM Table 2)", columns, rows, note)


def plot(found: dict[int, tuple[float, float | None]], papers: dict[int, float]) -> Plot:
    """Error against S, on logarithmic axes."""
    values, bars = zip(*found.values(), strict=True)
    curves = [Curve("these held-out images", list(found), values, [bar or 0.0 for bar in bars])]
    curves += [Curve("DDIM paper", list(papers), list(papers.values()), style="--")] if papers else []
    caption = "Error of decode(encode(x_0)) a dimension on [0, 1], η = 0, against the number of steps S."
    return Plot(caption, "S", "mean squared error", curves, log_x=True, log_y=True)


def figure(value: float, error: float | None) -> str:
    """A small value with its standard error."""
    return f"{value:.2e}" + (f" ± {error:.0e}" if error is not None else "")


def listed(steps: Sequence[int]) -> str:
    """10, 20, 50."""
    return ", ".join(map(str, steps))
