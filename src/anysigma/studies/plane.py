"""Points in the plane: what the network makes of them, beside the optimal denoiser of the training points alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anysigma.data.images import from_uint8
from anysigma.data.rings import Rings
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.exact import ExactDenoiser
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.metrics.anchors import HELD_OUT, Anchor
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.plots import COLOURS
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import CannotServe, Model, Study
from anysigma.studies.generated import path, sampled
from anysigma.studies.lineup import with_eta

TITLE = "In the plane"
ABOUT = "Points instead of images: the generated beside the data, where every error can be seen."

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REACH = 1.05  # the panels show [-REACH, REACH]²
Points = dict[tuple[str, float], Tensor]  # by denoiser and η: `[n, 2]`, or `[S + 1, n, 2]` for ways


@dataclass(frozen=True)
class Plane(Study):
    """Samples and their ways at several η, of the network and of the optimal denoisers of training points.

    The minimum of L_γ over all functions on the first K training points is known: E[x_0 | x_t] under Σ 1/K δ(x - x_k),
    and it can only give those points back. `points`: the K to show; `n` samples, `ways` of them with their way; `seed`
    names the noise, `block` points are computed at once. S, τ and clip are the sampler's. Every rank samples its share.
    Raises CannotServe for data other than rings, and for a sampler without η.
    """

    n: int
    ways: int
    etas: Sequence[float]
    points: Sequence[int]
    seed: int
    block: int

    def __post_init__(self):
        if self.n < 2 or self.ways < 1 or not self.etas or any(K < 1 for K in self.points):
            raise ValueError("study=plane: at least 2 samples, 1 way, one η and 1 point of every K are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Sample with every denoiser at every η, draw and measure."""
        if not isinstance(data.source, Rings):
            raise CannotServe(
                f"study=plane draws points of two numbers: it needs a run of data=rings, not {list(data.shape)}"
            )
        chosen = {eta: with_eta(sampler, eta) for eta in self.etas}
        card = {**model.card, **describe(sampler, model.denoiser.process.T), "sigma": list(self.etas), "seed": self.seed}
        result = Result("plane", TITLE, ABOUT, card={**card, "block": self.block, "data_hash": data.hash})
        train, held_out = from_uint8(data.train), from_uint8(data.held_out)
        models = {"network": (model, train)} | exact_ones(model, train, self.points)
        samples, ways = {}, {}
        for eta, noisy in chosen.items():
            for name, (one, _) in models.items():
                samples[name, eta] = sampled(one, noisy, self.n, seed=self.seed, block=self.block).flatten(1)
                ways[name, eta] = torch.stack([x_t.flatten(1) for _, x_t, _ in path(one, noisy, self.ways, self.seed)])
        known = {name: some.flatten(1) for name, (_, some) in models.items()}
        report(result, samples, held_out.flatten(1), known, data.source.radii)
        draw(result, samples, ways, held_out.flatten(1), known)
        return result


def exact_ones(model: Model, train: Tensor, points: Sequence[int]) -> dict[str, tuple[Model, Tensor]]:
    """By name: the optimal denoiser of the first K training points, as a model of the same process, and these points."""
    found = {}
    for K in sorted({min(K, len(train)) for K in points}):
        process, parameterization = model.denoiser.process, model.denoiser.parameterization
        denoiser: Denoiser = ExactDenoiser(process, train[:K], 0.0, parameterization).to(model.denoiser.device)
        found[f"optimal, {K} points"] = Model(denoiser, model.shape, model.card), train[:K]
    return found


def to_ring(points: Tensor, radii: Tensor) -> Tensor:
    """Distance of points `[n, 2]` to the nearest circle: `[n]`."""
    return (points.norm(dim=1)[:, None] - radii).abs().amin(1)


def to_point(points: Tensor, others: Tensor) -> Tensor:
    """Distance of points `[n, 2]` to the nearest of others `[K, 2]`: `[n]`."""
    return torch.cdist(points.double(), others.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def report(result: Result, samples: Points, held_out: Tensor, known: dict[str, Tensor], radii: Tensor) -> None:
    """Rows and a table: distance to the nearest circle, and to the nearest point that the denoiser knows."""
    real = Anchor(to_ring(held_out, radii).mean().item())
    rows = [["held-out data", "-", f"{real.value:.4f}", f"{to_point(held_out, known['network']).mean():.4f}"]]
    for (name, eta), points in samples.items():
        figures = {"distance_to_ring": to_ring(points, radii), "distance_to_known_point": to_point(points, known[name])}
        for metric, values in figures.items():
            value, error = mean_and_error(values)
            facts = {"better": -1, "anchors": {HELD_OUT: real}} if metric == "distance_to_ring" else {}
            result.rows.append(Row(metric, value, error, len(points), {"denoiser": name, "eta": eta}, **facts))
        rows.append([name, f"{eta:g}", *(f"{values.mean():.4f}" for values in figures.values())])
    note = "mean distances; the network was trained on all training points, the optimal denoisers know theirs alone"
    columns = ["points", "η", "to the nearest ring", "to the nearest training point"]
    result.tables.append(Table("Points in the plane", columns, rows, note))


def draw(result: Result, samples: Points, ways: Points, held_out: Tensor, known: dict[str, Tensor]) -> None:
    """Two pictures: samples, and ways from x_T to x_0; a row for each η, a column for each denoiser."""
    result.pictures["plane_samples"] = panels(samples, held_out, known, lambda axes, points: dots(axes, points, COLOURS[1]))
    result.captions["plane_samples"] = (
        "Samples in colour, beside held-out data on the left; grey: what each denoiser was made of. None of them knows the"
        " distribution. The optimum of L_γ over all functions only repeats its points: with few of them that is seen, with"
        " many it looks like the data. The network is smooth: it fills in between its points, and also between the rings."
    )
    result.pictures["plane_trajectories"] = panels(ways, held_out, known, lines)
    result.captions["plane_trajectories"] = (
        "Ways from x_T to x_0 (dots): at η = 0 smooth curves that x_T decides, at η > 0 walks with noise in every step."
    )


def panels(content: Points, held_out: Tensor, known: dict[str, Tensor], put: Any) -> np.ndarray:
    """uint8 `[H, W, 3]`: `put(axes, content)` over grey training points, in a row an η and a column a denoiser."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    etas, names = list(dict.fromkeys(eta for _, eta in content)), list(known)
    figure = Figure(figsize=(2.6 * (len(names) + 1), 2.7 * len(etas)), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    every = figure.subplots(len(etas), len(names) + 1, squeeze=False)
    for row, eta in zip(every, etas, strict=True):
        dots(row[0], held_out, COLOURS[0])
        row[0].set_title("held-out data", fontsize=10)
        for axes, name in zip(row[1:], names, strict=True):
            dots(axes, known[name], "#bbbbbb")
            put(axes, content[name, eta])
            axes.set_title(f"{name}, η = {eta:g}", fontsize=10)
        for axes in row:
            axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[:, :, :3].copy()


def dots(axes: "Axes", points: Tensor, colour: str) -> None:
    """Points `[n, 2]`; small where there are many."""
    axes.plot(*points.T.numpy(), ls="", marker="o", markersize=1.2 if len(points) > 200 else 2.5, mew=0, color=colour)


def lines(axes: "Axes", ways: Tensor) -> None:
    """Ways `[S + 1, n, 2]` as lines that end in dots."""
    for k in range(ways.shape[1]):
        axes.plot(*ways[:, k].T.numpy(), lw=0.7, alpha=0.8, color=COLOURS[k % len(COLOURS)])
        axes.plot(*ways[-1, k].numpy(), ls="", marker="o", markersize=3, color=COLOURS[k % len(COLOURS)])
