"""How many bits an image costs: the variational bound on held-out images, term by term."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import from_uint8
from anysigma.diffusion.bound import Bound, squared
from anysigma.diffusion.noise import ImageNoise, stream
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat, SigmaRule
from anysigma.machine.distributed import gathered, my_share, spread
from anysigma.machine.progress import progress
from anysigma.metrics.card import versions
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study

TITLE = "Likelihood"
ABOUT = "The variational bound on held-out images in bits a dimension, and where they are spent."

AT_MOST = 1000
NATS = 0.6931471805599453  # in a bit
CLIPS = {True: "clipped", False: "unclipped"}  # the headline first: the official DDPM code clips when it counts bits


@dataclass(frozen=True)
class Likelihood(Study):
    """-log₂ p_θ(x_0) ≤ L_T + Σ L_{t-1} + L_0 in bits/dim, DDPM eq. 5, of the chain over τ = 1..T, on held-out images.

    `n` null: all, at most 1,000. `steps`: how many of the T terms each image is asked for, t = 1 and T always and one t
    in each stratum between, weighted by the stratum's length, so that the sum has no bias; null: every t.
    `eta` in (0, 1]; `variance`: p_θ's, sigma (σ² itself) or beta (σ̂² = β_t, with the mean of η = 1). `seed` names noise,
    strata and the choice of images; `block` images are computed at once. Both bounds come from the same outputs of the
    network: f_θ held in [-1, 1] in every term, and as it is; each is the bound of a p_θ of its own.
    """

    n: int | None
    steps: int | None
    eta: float
    variance: str
    seed: int
    block: int

    in_float32 = True

    def __post_init__(self):
        if not 0 < self.eta <= 1:
            raise ValueError(f"study.eta={self.eta}: p_θ has no density at σ = 0; the bound needs η in (0, 1]")
        if self.variance not in ("sigma", "beta"):
            raise ValueError(f"study.variance={self.variance}: sigma (of eta) or beta (σ̂² = β_t)")
        if self.variance == "beta" and self.eta != 1:
            raise ValueError(f"study.eta={self.eta}: variance=beta has the mean of η = 1")
        if self.steps is not None and self.steps < 3:
            raise ValueError(f"study.steps={self.steps}: at least 3 terms are needed: t = 1, T and one between")
        if self.n is not None and self.n < 1:
            raise ValueError(f"study.n={self.n}: at least 1 image is needed")

    @property
    def rule(self) -> SigmaRule:
        """The sampler's σ rule."""
        return SigmaHat() if self.variance == "beta" else Eta(self.eta)

    def run(self, model: Model, sampler: Any, data: Any, features: Any, folder: Path) -> Result:
        """Draw x_t for every image at every t asked for, and sum."""
        images = from_uint8(chosen(data.held_out, self.n or AT_MOST, self.seed))
        bound, d = Bound(model.denoiser.process, self.rule), images[0].numel()
        found, (t, lengths) = self._found(model, bound, images), self.drawn_t(range(len(images)), bound.process.T)
        result = Result("likelihood", TITLE, ABOUT, card=self._card(model, data, len(images)), lines=remarks(data))
        L_T, nats = bound.prior(images), {clip: found[:, :, i] for i, clip in enumerate(CLIPS)}
        kept = {"prior": L_T, "t": t, "lengths": lengths, "squared_error": found[:, :, 2]}
        kept |= {f"nats_{word}": nats[clip] for clip, word in CLIPS.items()}
        result.arrays["likelihood"] = {name: values.numpy() for name, values in kept.items()}
        bits, L_T = {clip: one / d / NATS for clip, one in nats.items()}, L_T / d / NATS
        report(result, L_T, {clip: terms(one, lengths, L_T) for clip, one in bits.items()}, self._params())
        result.plots["likelihood_terms"] = terms_plot(bits, lengths)
        result.plots["rate_distortion"] = rate_plot(bits, found[:, :, 2] / d, lengths, L_T.mean().item())
        return result

    def drawn_t(self, ks: range, T: int) -> tuple[Tensor, Tensor]:
        """Each image's t, long `[n, K]`, the first column 1, and the length of each column's stratum, float64 `[K]`."""
        edges = strata(T, min(self.steps or T, T))
        lengths = edges.diff()
        u = torch.stack([torch.rand(len(lengths), generator=stream(self.seed, k, 1), dtype=torch.float64) for k in ks])
        ts = edges[:-1] + (u * lengths).long()
        return torch.cat([torch.ones(len(ts), 1, dtype=int), ts], 1), torch.cat([torch.ones(1), lengths]).double()

    def _found(self, model: Model, bound: Bound, images: Tensor) -> Tensor:
        """Nats clipped and unclipped, and the squared error of clipped f_θ, float64 `[n, K, 3]`, on every rank."""
        block = spread(len(images), self.block)
        mine = my_share(range(len(images)), block)
        blocks = [mine[i : i + block] for i in range(0, len(mine), block)]
        K = min(self.steps or bound.process.T, bound.process.T)
        made = (column for ks in blocks for column in self._columns(model, bound, images[ks], ks))
        columns = list(progress(made, len(blocks) * K, "likelihood"))
        found = [torch.stack(columns[i * K : (i + 1) * K], 1) for i in range(len(blocks))]
        return gathered(mine, torch.cat([torch.empty(0, K, 3, dtype=torch.float64), *found]))

    @torch.inference_mode()
    def _columns(self, model: Model, bound: Bound, x_0: Tensor, ks: list[int]) -> Iterator[Tensor]:
        """For one column of t after the other, from one call of the network: the three numbers of `_found`, `[B, 3]`."""
        denoiser, q = model.denoiser, bound.process
        noise = ImageNoise(ks, x_0.shape[1:], self.seed, denoiser.device)
        x_0, (ts, _) = x_0.to(denoiser.device), self.drawn_t(ks, q.T)
        for i, t in enumerate(ts.to(denoiser.device).unbind(1)):
            eps = noise()
            x_t = q.q_sample(x_0, t, eps)
            as_it_is = denoiser(x_t, t)
            clipped = denoiser.held(as_it_is, x_t, t)
            both = (clipped, as_it_is)  # in the order of CLIPS
            nats = [bound.decoder(x_0, one) if i == 0 else bound.step(x_0, eps, one, t) for one in both]
            yield torch.stack([*nats, squared(x_0 - clipped.x_0)], 1)

    def _params(self) -> dict[str, Any]:
        return {"eta": self.eta, "variance": self.variance}

    def _card(self, model: Model, data: Any, n: int) -> dict[str, Any]:
        return {
            **model.card, **self._params(), "tau": f"1..{model.denoiser.process.T}", "n": n, "seed": self.seed,
            "clip": "true in the headline, as in the official DDPM code; false beside it", "block": self.block,
            "terms_an_image": self.steps or "all", "images": "held out", "data_hash": data.hash,
            "decoder": "256 bins of width 2/255, σ_1² = β̃_2", "grey_levels": data.source.grey_levels,
            "padding": getattr(data.source, "pad", 0), "versions": versions(),
        }  # fmt: skip


def chosen(images: Tensor, n: int, seed: int) -> Tensor:
    """n of the images at random, in their order, or all of them where there are no more."""
    return images[torch.randperm(len(images), generator=stream(seed))[:n].sort().values]


def strata(T: int, K: int) -> Tensor:
    """K rising edges from 2 to T+1, long: K-1 strata of t = 2..T, the last T alone.

    They are short where t is small and the terms are large; at T predicted x_0 is at its worst, which may cost much.
    """
    if K == T:
        return torch.arange(2, T + 2)
    ramp = torch.linspace(0, 1, K - 1, dtype=torch.float64)
    inner = torch.maximum(2 + torch.arange(K - 1), (2 + (T - 2) * ramp**2).round().long())
    return torch.cat([inner, torch.tensor([T + 1])])


def remarks(data: Any) -> list[str]:
    """What keeps the figure from being compared with papers'."""
    grey, pad = data.source.grey_levels, getattr(data.source, "pad", 0)
    lines = [f"{grey} grey levels: bits/dim over 256 bins is not comparable with papers' figures"] if grey != 256 else []
    return lines + ([f"{pad} pixels of padding on every side count as dimensions and cost next to nothing"] if pad else [])


def terms(bits: Tensor, lengths: Tensor, L_T: Tensor) -> dict[str, Tensor]:
    """bits/dim of every image by term, `[n]`, from those of every t asked for `[n, K]`."""
    steps = (bits * lengths)[:, 1:].sum(1)
    total = L_T + steps + bits[:, 0]
    return {"bits_per_dim": total, "L_1 to L_{T-1}": steps, "of which L_{T-1}": bits[:, -1], "L_0": bits[:, 0]}


def report(result: Result, L_T: Tensor, found: dict[bool, dict[str, Tensor]], params: dict[str, Any]) -> None:
    """Rows, a table and a line from bits/dim of every image, `[n]` a term, clipped and not."""
    value, error = mean_and_error(L_T)
    table = {"bits_per_dim": ["bits/dim"], "L_T": ["L_T", *written(value, error) * 2]}
    result.rows.append(Row("L_T", value, error, len(L_T), params))
    for clip, one in found.items():
        for metric, values in one.items():
            value, error = mean_and_error(values)
            facts = {"better": -1, "label": "bits/dim", "key": clip} if metric == "bits_per_dim" else {}
            result.rows.append(Row(metric, value, error, len(L_T), params | {"clip": clip}, card={"clip": clip}, **facts))
            table.setdefault(metric, [metric]).extend(written(value, error))
    note = "; ".join([f"standard error over {len(L_T)} held-out images, the same draws for both", *result.lines])
    columns = ("term", *[text for word in CLIPS.values() for text in (word, "s.e.")])
    result.tables.append(Table("Variational bound in bits/dim", columns, list(table.values()), note))
    held, free = (" ± ".join(table["bits_per_dim"][i : i + 2]) for i in (1, 3))
    result.lines.insert(0, f"at most {held} bits/dim with f_θ held in [-1, 1], as the official code counts; {free} without")


def written(value: float, error: float | None) -> list[str]:
    """A mean and its standard error as two cells."""
    return [readable(value), "-" if error is None else readable(error)]


def readable(value: float) -> str:
    """Four decimals, or what is too small for them."""
    return f"{value:.4f}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"


def terms_plot(bits: dict[bool, Tensor], lengths: Tensor) -> Plot:
    """L_0 and L_{t-1} against t, from bits/dim `[n, K]`: the mean over images, in the middle of each stratum."""
    t = 1 + lengths.cumsum(0) - lengths + (lengths - 1) / 2
    curves = [Curve(CLIPS[clip], t.tolist(), one.mean(0).tolist()) for clip, one in bits.items()]
    caption = "What each step costs, from L_0 at t = 1 to L_{T-1} at t = T."
    return Plot(caption, "t", "L_{t-1}, bits/dim", curves, log_x=True, log_y=True)


def rate_plot(bits: dict[bool, Tensor], squared_errors: Tensor, lengths: Tensor, L_T: float) -> Plot:
    """Distortion against rate, from bits/dim and squared errors a dimension on [-1, 1], all `[n, K]`.

    rate_t = L_T + Σ_{i>t} L_{i-1}: what it costs to tell x_t; distortion: RMSE of f_θ(x_t) on 0..255. Within a stratum
    of length m, t lies on average above half of the other m - 1.
    """
    distortion, curves = (squared_errors.mean(0).sqrt() * 255 / 2).tolist(), []
    for clip, one in bits.items():
        told = one.mean(0) * lengths
        rate = L_T + told.flip(0).cumsum(0).flip(0) - told + told * (lengths - 1) / (2 * lengths)
        curves.append(Curve(CLIPS[clip], rate.tolist(), distortion))
    caption = "How far f_θ(x_t), held in [-1, 1], is from the image once x_t is told: from x_T on the left to x_1."
    return Plot(caption, "rate, bits/dim", "distortion, RMSE on 0..255", curves)
