"""τ = [T]: one jump from noise to the predicted x_0, and what is seen there: the data's mean, or the network's error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.data.images import from_uint8, to_uint8
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.parameterizations import Parameterization
from anysigma.diffusion.samplers.amplification import per_output
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.pictures import grid
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.generated import sampled
from anysigma.studies.lineup import at_S, without_noise

TITLE = "One step"
ABOUT = "From pure noise to x_0 in a single jump: the mean of the data, and what the network's error becomes on the way."

# Noise for q_sample, apart from the images' own.
OTHER_NOISE = 1


@dataclass(frozen=True)
class OneStep(Study):
    """f_θ^(T)(x_T), DDIM eq. 9, beside the images that the sampler, its η at 0, makes of the same x_T.

    x_T says next to nothing about x_0, so the best prediction is the data's mean; what the network's output misses of its
    target reaches x_0 multiplied by `amplification`: where that is much (eps), its error is all there is to see. `n`
    images are measured, `shown` drawn; `steps`: S of the images beside them, T where T is smaller; `seed` names the
    noise, `block` images are computed at once. Every rank makes its share.
    """

    n: int
    steps: int
    shown: int
    seed: int
    block: int

    in_float32 = True

    def __post_init__(self):
        if self.n < 2 or self.shown < 1:
            raise ValueError(f"n={self.n}, shown={self.shown}: at least 2 images, and 1 to show, are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Jump, measure the jump against the data's mean, and draw both."""
        T = model.denoiser.process.T
        many = at_S(without_noise(sampler), min(self.steps, T))
        one = Generalized.with_eta(steps=1, eta=0.0, tau=[T], clip=False, limit=None)  # to see what is refused elsewhere
        card = {**model.card, **describe(one, T), "beside": describe(many, T), "seed": self.seed, "block": self.block}
        card |= {"data_hash": data.hash, "scale": "[-1, 1], neither rounded nor clipped"}
        result = Result("one_step", TITLE, ABOUT, card=card)
        jump = sampled(model, one, self.n, seed=self.seed, block=self.block)
        mean, spread = mean_and_spread(data.train)
        missed = self._missed(model, from_uint8(data.held_out[: self.n]))
        report(result, model.denoiser, jump, mean, spread, missed)
        whole = sampled(model, many, min(self.shown, self.n), seed=self.seed, block=self.block)
        self._draw(result, jump[: self.shown], mean, whole)
        return result

    @torch.inference_mode()
    def _missed(self, model: Model, x_0: Tensor) -> dict[str, Tensor]:
        """Mean squared error at T on held-out images, `[n]` each: of the network's own output, and of its eps."""
        found = {"output": [], "eps": []}
        for first in range(0, len(x_0), self.block):
            clean = x_0[first : first + self.block].to(model.denoiser.device)
            ks = range(first, first + len(clean))
            eps = ImageNoise(ks, model.shape, self.seed + OTHER_NOISE, clean.device)()
            for name, error in errors_at_T(model.denoiser, clean, eps).items():
                found[name].append(error.cpu())
        return {name: torch.cat(pieces) for name, pieces in found.items()}

    def _draw(self, result: Result, jump: Tensor, mean: Tensor, whole: Tensor) -> None:
        """Four rows: the jump with its whole range, the jump cut to [-1, 1], the data's mean, many steps."""
        n, largest = len(jump), max(jump.abs().amax().item(), 1.0)
        means = mean.float().expand(n, *mean.shape)
        result.pictures["one_step"] = grid(to_uint8(torch.cat([jump / largest, jump, means, whole])), columns=n)
        result.captions["one_step"] = (
            f"From above: one step, [-{largest:.3g}, {largest:.3g}] shown from black to white; the same cut to [-1, 1];"
            f" the mean of the training images; {len(jump)} images in {result.card['beside']['S']} steps from the same x_T."
        )


def amplification(q: GaussianProcess, parameterization: Parameterization) -> float:
    """By what an error of the network's output is multiplied in x_0 at T: √(1-α_T) · v_scale(T).

    eps gives √(1-α_T)/√α_T (about 157 for DDPM's schedule), x_0 gives 1, v √(1-α_T).
    """
    return per_output(q, parameterization, q.T, 0)


def errors_at_T(denoiser: Denoiser, x_0: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """Mean over dimensions of (output - target)² and of (ε_θ - eps)² at x_T ~ q(x_T | x_0), `[B]`."""
    q, t = denoiser.process, torch.full((len(x_0),), denoiser.process.T, device=x_0.device)
    x_T = q.q_sample(x_0, t, eps)
    output = denoiser.output(x_T, t)
    target = denoiser.parameterization.target(q, x_0, t, eps)
    predicted = denoiser.parameterization.predict(q, output, x_T, t).eps
    return {
        "output": (output - target).double().square().flatten(1).mean(1),
        "eps": (predicted - eps).double().square().flatten(1).mean(1),
    }


def mean_and_spread(images: Tensor) -> tuple[Tensor, float]:
    """The mean image `[C, H, W]` of uint8 images, and the standard deviation around it over images and dimensions."""
    mean = from_uint8(images.sum(0, dtype=torch.float64) / len(images))
    squares = sum((from_uint8(piece) - mean).double().square().sum().item() for piece in images.split(1000))
    return mean, (squares / images.numel()) ** 0.5


def report(result: Result, denoiser: Denoiser, jump: Tensor, mean: Tensor, spread: float, missed: dict[str, Tensor]) -> None:
    """Rows, a table that leads from the network's error to the picture, and a line."""
    factor = amplification(denoiser.process, denoiser.parameterization)
    off = (jump.double() - mean).square().flatten(1).mean(1)
    saturated = mean_and_error((jump.abs() > 1).double().flatten(1).mean(1))
    apart = jump.double().var(0).mean().item() ** 0.5
    figures = {
        "amplification": ("an error of the network's output, in x_0, is multiplied by", factor, None),
        "output_rmse_at_T": ("error of the network's output at T", *root(missed["output"])),
        "eps_rmse_at_T": ("error of its eps at T", *root(missed["eps"])),
        "one_step_rmse_to_mean": ("one step to the data's mean", *root(off)),
        "one_step_saturated": ("share of its pixels outside [-1, 1]", *saturated),
        "one_step_sd": ("standard deviation over images, one step", apart, None),
        "data_sd": ("standard deviation over images, data", spread, None),
    }
    for metric, (what, value, error) in figures.items():
        result.rows.append(Row(metric, value, error, len(jump), {"T": denoiser.process.T}, label=what))
    rows = [[what, f"{value:.4g}" + (f" ± {error:.1g}" if error else "")] for what, value, error in figures.values()]
    result.arrays["one_step"] = {"jump": jump.numpy(), "mean": mean.numpy()} | {
        f"squared_error_of_{name}": squares.numpy() for name, squares in missed.items()
    }
    note = (
        "root mean squares a dimension on [-1, 1], ± standard error over images; an x_0 or v output misses the data's own"
        " spread too, which x_T cannot tell"
    )
    result.tables.append(Table("One step from T", ["what", "value"], rows, note))
    result.lines.append(
        f"one step: {seen(root(off)[0] / spread)}. It lies {root(off)[0]:.3g} from the data's mean a dimension (the data"
        f" themselves: {spread:.3g}), {100 * saturated[0]:.1f} % of its pixels outside [-1, 1]: the output's error at T,"
        f" {root(missed['output'])[0]:.3g}, reaches x_0 times {factor:.4g}"
    )


def seen(away: float) -> str:
    """What the jump shows, by its distance from the data's mean in standard deviations of the data.

    A network without error is √α_T standard deviations from it; what lies further is its error, amplified.
    """
    if away > 1:
        return "the picture is the network's error, amplified"
    return "nearly the mean of the data" if away < 0.25 else "the mean of the data under the network's error, amplified"


def root(squares: Tensor) -> tuple[float, float | None]:
    """Root of the mean and its standard error, s.e. of the mean / (2 · root)."""
    value, error = mean_and_error(squares)
    return value**0.5, error / (2 * value**0.5) if error is not None and value > 0 else None
