"""A trial: of several ways to compute the same, which is fastest here."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn

from anysigma.machine.hardware import Hardware

# Makes the work as one hardware does it, on copies; calling what it returns does it once, to the end.
Work = Callable[[Hardware], Callable[[], None]]

OTHER = {
    "precision": "bf16-mixed", "memory_format": "channels_last", "fused": True,
    "tf32": True, "cudnn_benchmark": True, "compile": True,
}  # fmt: skip
WIN = 1.05  # by less, the plain one stays: choices would change from day to day
HOPELESS = 3.0  # times the plain one's first call: bfloat16 on a processor that has none
PAIRS = 5
LONG, FEW = 1.0, 16  # a step of more than so many seconds is tried at so many images
SHORT_BUDGET, LONG_BUDGET = 1.8, 12.0  # seconds of a whole trial, where a step is short and where it is long


def fastest(hardware: Hardware, names: Sequence[str], work: Work, seconds: float) -> tuple[Hardware, float]:
    """The hardware with those of `names` that are `auto` settled one after another, and how much faster than plain it is.

    The other value of each has to win by 5 % in turns with what has won so far; one that fails has lost. `seconds`: at
    most, but for compiling.
    """
    best, gain, waiting = hardware.plain(), 1.0, [name for name in names if getattr(hardware, name) == "auto"]
    if not waiting:
        return best, gain
    end = time.perf_counter() + seconds
    now = work(best)
    first = timed(now)
    while waiting:
        share = (end - time.perf_counter()) / len(waiting)
        name = waiting.pop(0)
        other = replace(best, **{name: OTHER[name]})
        try:
            then = work(other)
            ratio = race(now, then, first, share, patient=name == "compile")
        except (RuntimeError, TypeError, ValueError):  # what a network or an optimiser cannot do has lost
            continue
        if ratio >= WIN:
            best, now, gain = other, then, gain * ratio
    return best, gain


def race(now: Callable[[], None], then: Callable[[], None], first: float, seconds: float, patient: bool = False) -> float:
    """How much faster `then` is than `now`, by medians over calls in turn; 0 where its first call took far too long.

    `first`: seconds that the first call of the plain work took; `patient`: never mind how long the first one takes.
    """
    started = time.perf_counter()
    if timed(then) > HOPELESS * first and not patient:
        return 0.0
    end = (time.perf_counter() if patient else started) + seconds
    pairs: list[tuple[float, float]] = []
    while not pairs or (len(pairs) < PAIRS and time.perf_counter() < end):
        pairs.append((timed(now), timed(then)))
    mine, theirs = zip(*pairs, strict=True)
    return median(mine) / median(theirs)


def timed(step: Callable[[], None]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def plan(work: Callable[[int], Work], hardware: Hardware, images: int) -> tuple[int, float]:
    """(images, seconds) of a trial: a whole batch where a step is short, else 16 images, halved while that is long too.

    `work`: of so many images.
    """
    few = min(FEW, images)
    step = work(few)(hardware.plain())
    step()
    seconds = timed(step)
    if seconds * images / few <= LONG:
        return images, SHORT_BUDGET
    while seconds > 2 * LONG and few > 4:
        few, seconds = few // 2, seconds / 2
    return few, LONG_BUDGET


def forward(network: nn.Module, shape: Sequence[int], images: int, where: torch.device) -> Work:
    """One call of the network for so many images, without gradients: what sampling consists of."""
    x_t = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0)).to(where)
    t = torch.arange(1, images + 1, device=where)

    def made(hardware: Hardware) -> Callable[[], None]:
        mine = hardware.apply(copy.deepcopy(network).to(where))

        @torch.inference_mode()
        def step() -> None:
            hardware.set_flags()
            with hardware.autocast():
                done(mine(x_t, t))

        return step

    return made


def done(result: Tensor) -> None:
    """Wait until the device has it."""
    result.float().sum().item()
