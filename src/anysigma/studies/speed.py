"""Images a second against the number of steps."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.samplers.base import Sampler, describe
from anysigma.machine.distributed import is_first
from anysigma.machine.progress import progress
from anysigma.metrics.card import versions
from anysigma.metrics.statistics import mean_and_error
from anysigma.report.plots import Curve, Plot
from anysigma.report.results import Result, Row, Table
from anysigma.studies.base import Model, Study
from anysigma.studies.lineup import at_S, each_S

TITLE = "Speed"
ABOUT = "Images a second and seconds an image, against the number of steps S."


@dataclass(frozen=True)
class Speed(Study):
    """How long the sampler takes for a block of `block` images at every S of `steps`, those above T left out.

    `repeats` blocks are timed after one that is not; noise is drawn inside the time, features and files are not.
    Rank 0 is timed alone.
    """

    steps: Sequence[int]
    block: int
    repeats: int
    seed: int

    def __post_init__(self):
        if self.block < 1 or self.repeats < 1:
            raise ValueError(f"block={self.block}, repeats={self.repeats}: at least 1 image and 1 repeat are needed")

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result:
        """Time it. Raises CannotServe for a sampler without a τ rule."""
        T = model.denoiser.process.T
        every = each_S(sampler, self.steps, T)
        card = {**model.card, **describe(at_S(sampler, every[0]), T), "S": every, "versions": versions()}
        card |= {**machine(model.denoiser.device), "seed": self.seed, "warm-up": "one block of the fewest steps"}
        card |= {"block": self.block, "repeats": self.repeats}
        card |= {"parameters": sum(p.numel() for p in model.denoiser.parameters()), "shape": list(model.shape)}
        result = Result("speed", TITLE, ABOUT, card=card)
        if is_first():
            self._once(model, at_S(sampler, every[0]))
            jobs = [S for S in every for _ in range(self.repeats)]
            seconds = [self._once(model, at_S(sampler, S)) for S in progress(jobs, len(jobs), "speed")]
            each = dict(zip(every, torch.tensor(seconds, dtype=torch.float64).split(self.repeats), strict=True))
            report(result, each, self.block)
            result.arrays["speed"] = {f"seconds_S{S}": some.numpy() for S, some in each.items()}
        return result

    @torch.inference_mode()
    def _once(self, model: Model, sampler: Sampler) -> float:
        where = model.denoiser.device

        def block() -> None:
            noise = ImageNoise(range(self.block), model.shape, self.seed, where)
            sampler(model.denoiser, noise(), noise)

        return timed(block, where)


def timed(work: Callable[[], None], where: torch.device) -> float:
    """Seconds until all of `work` is done, also what a GPU does beside."""
    wait = torch.cuda.synchronize if where.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def machine(where: torch.device) -> dict[str, Any]:
    """What the time was taken on."""
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else processor()
    return {"device": where.type, "device_name": name, "threads": torch.get_num_threads()}


def processor() -> str:
    """The CPU's name where Linux tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(result: Result, seconds: dict[int, torch.Tensor], block: int) -> None:
    """Rows, table, plot and a line from the seconds a block, `[repeats]` at every S."""
    rates = {S: block / each for S, each in seconds.items()}
    for S, each in seconds.items():
        for metric, values, better, label in (
            ("images_per_second", rates[S], 1, "Images a second"),
            ("seconds_per_image", each / block, -1, "Seconds an image"),
        ):
            value, error = mean_and_error(values)
            result.rows.append(Row(metric, value, error, len(each), {"S": S, "block": block}, better, label=label))
    rows = [
        [str(S), f"{rate.mean():.4g}", f"{rate.min():.4g} to {rate.max():.4g}", f"{seconds[S].mean() / block:.3g}"]
        for S, rate in rates.items()
    ]
    threads = result.card["threads"]
    note = f"blocks of {block} images, {threads} thread{'s' * (threads != 1)}, {result.card['device_name']}"
    result.tables.append(Table("Speed", ["S", "images/s", "slowest to fastest", "s an image"], rows, note))
    values, bars = zip(*(mean_and_error(rate) for rate in rates.values()), strict=True)
    curve = Curve("here", list(rates), values, [bar or 0.0 for bar in bars])
    caption = f"Images a second in blocks of {block}, against the number of steps S."
    result.plots["speed"] = Plot(caption, "S", "images/s", [curve], log_x=True, log_y=True)
    result.lines.append("speed: " + ", ".join(f"S = {S} {rate.mean():.4g} images/s" for S, rate in rates.items()))
