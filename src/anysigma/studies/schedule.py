"""Noise schedules side by side: what they leave of an image at every t, and how the bound weighs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.objective import Gamma
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.schedules.base import NoiseSchedule
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study

TITLE = "Noise schedules"
ABOUT = "How much signal is left at every t, and the weights γ_t that follow from it."

OWN = "this run's"


@dataclass(frozen=True)
class Schedules(Study):
    """α_t, SNR_t = α_t/(1-α_t), γ_t and the signal left at T, √α_T, of several schedules; of a checkpoint's own too.

    `schedules` and `gammas` by the name they are shown under; `at`: t/T of the table's columns, each in (0, 1].
    """

    schedules: Mapping[str, NoiseSchedule]
    gammas: Mapping[str, Gamma]
    at: Sequence[float]

    needs_checkpoint = False

    def __post_init__(self):
        if not all(0 < share <= 1 for share in self.at):
            raise ValueError(f"study.at={list(self.at)}: each t/T must lie in (0, 1]")

    def run(self, model: Model | None, sampler: Any, data: Any, features: Any, folder: Path) -> Result:
        """Tables at some t, plots at every t; nothing is computed with a network."""
        own = {OWN: model.denoiser.process.schedule} if model else {}
        processes = {name: GaussianProcess(schedule) for name, schedule in {**self.schedules, **own}.items()}
        result = Result("schedule", TITLE, ABOUT, card=dict(model.card) if model else {})
        quantities = {"alpha": ("α_t", alpha), "snr": ("SNR_t", snr)}
        for name, rule in self.gammas.items():
            quantities[f"gamma_{name}"] = (f"γ_t of {name}", lambda q, t, rule=rule: gamma(q, t, rule))
        result.tables = [ends(processes), *[self._table(title, f, processes) for title, f in quantities.values()]]
        result.plots = {f"schedule_{name}": plot(title, f, processes) for name, (title, f) in quantities.items()}
        result.rows = [row(name, q) for name, q in processes.items()]
        return result

    def _table(self, title: str, f: Any, processes: Mapping[str, GaussianProcess]) -> Table:
        rows = []
        for name, q in processes.items():
            t = torch.tensor([max(1, round(share * q.T)) for share in self.at])
            rows.append([name, *[f"{value:.4g}" for value in f(q, t).tolist()]])
        return Table(title, ["schedule", *[f"t/T = {share:g}" for share in self.at]], rows)


def alpha(q: GaussianProcess, t: Tensor) -> Tensor:
    """α_t."""
    return q.alpha(t)


def snr(q: GaussianProcess, t: Tensor) -> Tensor:
    """α_t/(1-α_t)."""
    return q.alpha(t) / (1 - q.alpha(t))


def gamma(q: GaussianProcess, t: Tensor, rule: Gamma) -> Tensor:
    """γ_t in eps-space; infinite where a rule grows as 1/α_t and α_t = 0."""
    return rule.weight(q, t, Eps())


def ends(processes: Mapping[str, GaussianProcess]) -> Table:
    """The two ends of each schedule: how little noise it begins with, how little signal it ends with."""
    rows = []
    for name, q in processes.items():
        first, last = 1 - q.alpha(1).item(), q.alpha(q.T).item()
        rows.append([name, str(q.T), f"{first:.3g}", f"{1 - last / q.alpha(q.T - 1).item():.3g}", f"{last**0.5:.3g}"])
    note = "√α_T: the share of x_0 that is left in x_T, which sampling starts without."
    return Table("Signal left at T", ("schedule", "T", "β_1", "β_T", "√α_T"), rows, note)


def plot(title: str, f: Any, processes: Mapping[str, GaussianProcess]) -> Plot:
    """One curve a schedule over t/T, where the quantity is finite and, on a log axis, above 0.

    Curves that lie on each other stay apart: every second one is dashed, a run's own is dotted.
    """
    curves, is_alpha = [], f is alpha
    for i, (name, q) in enumerate(processes.items()):
        t = torch.arange(1, q.T + 1, max(1, q.T // 25) if name == OWN else 1)
        y = f(q, t)
        shown = y.isfinite() & ((y > 0) | is_alpha)
        style = "." if name == OWN else ("-", "--")[i % 2]
        curves.append(Curve(name, (t / q.T)[shown].tolist(), y[shown].tolist(), style=style))
    return Plot(f"{title} of each schedule.", "t/T", title, curves, log_y=not is_alpha)


def row(name: str, q: GaussianProcess) -> Row:
    """√α_T as a figure of results.json."""
    return Row("signal left at T", q.alpha(q.T).item() ** 0.5, params={"schedule": name, "T": q.T})
