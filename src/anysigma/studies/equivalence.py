"""DDIM's theorem 1 made visible: J_σ = L_γ + C, with one C for every network."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import from_uint8
from anysigma.diffusion.bound import Bound, squared
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.noise import ImageNoise, stream
from anysigma.diffusion.objective import Elbo
from anysigma.diffusion.samplers.joint import joint
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.machine.distributed import gathered, my_share
from anysigma.machine.progress import progress
from anysigma.metrics.card import versions
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.likelihood import chosen

TITLE = "One objective for every σ"
ABOUT = "J_σ and L_γ on the same draws differ by a constant that no network moves."

NOTE = (
    "nats an image. C = E KL(q(x_T|x_0) ‖ N(0, I)) + (d/2) ln(2π σ_1²) holds no network and no σ: J_σ and L_γ differ by it,"
    " whatever the network, so the network that minimises one minimises the other (DDIM, theorem 1)."
)


@dataclass(frozen=True)
class Objective(Study):
    """J_σ = E[log q_σ(x_{1:T} | x_0) - log p_θ(x_{0:T})] against L_γ + C on the same draws, DDIM eq. 11 and 5.

    x_T..x_1 are drawn jointly from q_σ, J_σ comes from log densities with p_θ(x_0 | x_1) = N(f_θ, σ_1² I), L_γ from
    squared errors with the γ of that σ. `n` draws; `etas` in (0, 1]; the second network is the first with noise of
    `perturbation` times each tensor's root mean square added to its weights. `seed` names draws, images and that noise.
    """

    n: int
    etas: Sequence[float]
    perturbation: float
    seed: int
    block: int

    in_float32 = True

    def __post_init__(self):
        if not self.etas or not all(0 < eta <= 1 for eta in self.etas):
            raise ValueError(f"study.etas={list(self.etas)}: p_θ has no density at σ = 0; each η must lie in (0, 1]")
        if self.n < 2:
            raise ValueError(f"study.n={self.n}: at least 2 draws are needed, for the standard error")

    def run(self, model: Model, sampler: Any, data: Any, features: Any, folder: Path) -> Result:
        """Draw, sum, compare."""
        images = from_uint8(chosen(data.held_out, self.n, self.seed))
        networks = {"the checkpoint's": model.denoiser, "perturbed": perturbed(model.denoiser, self.perturbation, self.seed)}
        found = self._found(list(networks.values()), images)  # [n, η, networks, 2]
        q = model.denoiser.process
        C = Bound(q, Eta(self.etas[0])).constant(images)
        result = Result("objective", TITLE, ABOUT, card=self._card(model, data, len(images)))
        result.arrays["objective"] = {"J_and_L": found.numpy(), "C": C.numpy()}  # [n, η, networks, 2], [n]
        rows = []
        for i, eta in enumerate(self.etas):
            for j, name in enumerate(networks):
                rows.append(compared(result, found[:, i, j], C, {"eta": eta, "network": name}))
        columns = ("network", "η", "J_σ", "L_γ", "J_σ - L_γ", "s.e.", "C", "z")
        result.tables.append(Table("J_σ = L_γ + C", columns, rows, NOTE))
        result.plots["objective"] = difference_plot(result.rows, list(networks), C.mean().item())
        return result

    def _found(self, denoisers: list[Denoiser], images: Tensor) -> Tensor:
        """J_σ and L_γ of every draw, float64 `[n, η, networks, 2]`, on every rank, each rank drawing its share."""
        mine = my_share(range(len(images)), self.block)
        blocks = [mine[i : i + self.block] for i in range(0, len(mine), self.block)]
        T = denoisers[0].process.T
        made = (step for ks in blocks for step in self._steps(denoisers, images[ks], ks))
        steps = progress(made, len(blocks) * T, "objective")
        found = [sum(islice(steps, T)) for _ in blocks]
        return gathered(mine, torch.cat([torch.empty(0, len(self.etas), len(denoisers), 2, dtype=torch.float64), *found]))

    @torch.inference_mode()
    def _steps(self, denoisers: list[Denoiser], x_0: Tensor, ks: list[int]) -> Iterator[Tensor]:
        """What each step t = T..1 adds to J_σ and L_γ, `[B, η, networks, 2]`; the first brings x_T's part too.

        The paths of all η go side by side, from the same noise, so that each t is one call of each network.
        """
        q, device = denoisers[0].process, denoisers[0].device
        x_0, bounds = x_0.to(device), [Bound(q, Eta(eta)) for eta in self.etas]
        noises = [ImageNoise(ks, x_0.shape[1:], self.seed, device) for _ in self.etas]
        paths = [joint(q, x_0, bound.rule, noise) for bound, noise in zip(bounds, noises, strict=True)]
        for steps in zip(*[pairwise(chain(path, [(0, x_0)])) for path in paths], strict=True):
            t, states = steps[0][0][0], [x_t for (_, x_t), _ in steps]
            outputs = [denoiser.output(torch.cat(states), t).chunk(len(states)) for denoiser in denoisers]
            added = [
                torch.stack(
                    [both(denoiser, bound, x_0, x_t, x_s, t, o[i]) for denoiser, o in zip(denoisers, outputs, strict=True)],
                    1,
                )
                for i, (bound, ((_, x_t), (_, x_s))) in enumerate(zip(bounds, steps, strict=True))
            ]
            yield torch.stack(added, 1)

    def _card(self, model: Model, data: Any, n: int) -> dict[str, Any]:
        return {
            **model.card, "n": n, "seed": self.seed, "block": self.block, "perturbation": self.perturbation,
            "tau": f"1..{model.denoiser.process.T}", "x_0": "held out", "data_hash": data.hash,
            "decoder": "N(f_θ, σ_1² I), σ_1² = β̃_2", "clip": False, "versions": versions(),
        }  # fmt: skip


def both(denoiser: Denoiser, bound: Bound, x_0: Tensor, x_t: Tensor, x_s: Tensor, t: int, output: Tensor) -> Tensor:
    """One draw's part of J_σ and of L_γ from the step t → s = t-1, float64 `[B, 2]`, in nats."""
    prediction = denoiser.parameterization.predict(bound.process, output, x_t, t)
    J = bound.log_ratio(x_0, x_t, x_s, prediction, t)
    if t == bound.process.T:
        J += bound.log_ratio_T(x_0, x_t)
    return torch.stack([J, gamma_term(denoiser, bound.rule.eta, x_0, x_t, t, output)], 1)


def gamma_term(denoiser: Denoiser, eta: float, x_0: Tensor, x_t: Tensor, t: int, output: Tensor) -> Tensor:
    """γ_t ‖ε_θ(x_t, t) - eps‖², DDIM eq. 5, with the γ of σ(η), summed over pixels, float64 `[B]`."""
    q, parameterization = denoiser.process, denoiser.parameterization
    target = parameterization.target(q, x_0, t, q.eps(x_t, t, x_0))
    return Elbo(eta).weight(q, torch.tensor([t]), parameterization) * squared(output - target)


def perturbed(denoiser: Denoiser, size: float, seed: int) -> Denoiser:
    """A copy whose every weight tensor has had noise of `size` times its root mean square added."""
    other, generator = copy.deepcopy(denoiser), stream(seed, 1)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight += size * weight.square().mean().sqrt() * noise
    return other


def compared(result: Result, found: Tensor, C: Tensor, params: dict[str, Any]) -> list[str]:
    """One line of the table from J_σ and L_γ of every draw `[n, 2]` and C of every image `[n]`; its figures are added."""
    J, L = found.unbind(1)
    facts = {"J_sigma": J, "L_gamma": L, "J_sigma - L_gamma": J - L, "C": C}
    for metric, values in facts.items():
        value, error = mean_and_error(values)
        label = metric.replace("_sigma", "_σ").replace("_gamma", "_γ")
        result.rows.append(Row(metric, value, error, len(J), params, label=label))
    means = [values.mean().item() for values in facts.values()]
    error = ((J - L - C).std() / len(J) ** 0.5).item()
    z = (means[2] - means[3]) / error
    return [
        params["network"],
        f"{params['eta']:g}",
        *[f"{m:.2f}" for m in means[:3]],
        f"{error:.2f}",
        f"{means[3]:.2f}",
        f"{z:+.1f}",
    ]


def difference_plot(rows: Sequence[Row], networks: Sequence[str], C: float) -> Plot:
    """J_σ - L_γ against L_γ, one set of points a network, and C as a line."""
    curves, every = [], [row.value for row in rows if row.metric == "L_gamma"]
    for name in networks:
        mine = [row for row in rows if row.params["network"] == name]
        L = [row.value for row in mine if row.metric == "L_gamma"]
        gap = [row for row in mine if row.metric == "J_sigma - L_gamma"]
        curves.append(Curve(name, L, [g.value for g in gap], [g.error for g in gap], style="."))
    curves.append(Curve("C", [min(every), max(every)], [C, C], style="--"))
    caption = "J_σ - L_γ stays at C whatever L_γ the network and η give."
    return Plot(caption, "L_γ, nats an image", "J_σ - L_γ, nats an image", curves)
