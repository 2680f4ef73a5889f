"""Where a step's time goes: a few steps looked at closely, after which the run goes on as it was."""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch.profiler import ProfilerActivity

from anysigma.machine.distributed import say, shown

REST = "rest"
EMA = "EMA"
# By which of the actions that Lightning names a part is known, up to a dot or bracket; an action of no part belongs to
# the part that it lies in. Clipping and the gradients' zeros lie in the optimiser's.
PARTS = {
    "data": ("train_dataloader_next", "on_before_batch_transfer", "batch_to_device"),
    "forward": ("training_step",),
    "backward": ("backward",),
    "optimiser": ("optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    EMA: (EMA,),
    "callbacks": (),  # whatever begins with [Callback]
    REST: (),
}
LOOKED_AT, OPERATORS = 3, 8  # steps in which operators are timed, and how many of them are shown


class Parts(Profiler):
    """Seconds by part, from what Lightning says it begins and ends; what is in no part is the rest.

    `inner`: the profiler that was there, which hears the same; `wait`: called before every reading of the clock, so that
    a device's work counts where it was asked for.
    """

    def __init__(self, inner: Profiler, wait: Callable[[], None]):
        super().__init__()
        self.inner, self.wait = inner, wait
        self.seconds: Counter[str] = Counter()
        self._inside: list[str] = []
        self._since = self._now()

    def _now(self) -> float:
        self.wait()
        return time.perf_counter()

    def _turn(self) -> None:
        """What has passed belongs to the innermost part."""
        now = self._now()
        self.seconds[self._inside[-1] if self._inside else REST] += now - self._since
        self._since = now

    def start(self, action_name: str) -> None:
        """The time until now is the part's around it."""
        self.inner.start(action_name)
        self._turn()
        self._inside.append(part_of(action_name) or (self._inside[-1] if self._inside else REST))

    def stop(self, action_name: str) -> None:
        """The time until now is its part's."""
        self._turn()
        self._inside.pop()
        self.inner.stop(action_name)


def part_of(action: str) -> str | None:
    """The part that an action begins, None where it begins none."""
    if action.startswith("[Callback]"):
        return "callbacks"
    name = action.rsplit(".", 1)[-1]
    return next((part for part, names in PARTS.items() if name in names), None)


class Profile(Callback):
    """Writes profile.txt: where the time of `steps` optimiser steps went, after `after` steps of warm-up; none for 0.

    Parts are data, forward (t and ε drawn there), backward, optimiser (clipping in it), EMA, callbacks and the rest; then
    which operators took most in the steps after. On a GPU the device is waited for wherever a part begins or ends: in
    these steps alone. Nothing that is computed changes. Raises ValueError for negative numbers.
    """

    def __init__(self, steps: int, after: int):
        if steps < 0 or after < 0:
            raise ValueError(f"callbacks.profile: steps={steps}, after={after}: neither may be below 0")
        self.steps, self.after = steps, after
        self._first: int | None = None
        self._parts: Parts | None = None
        self._operators: torch.profiler.profile | None = None
        self._text = ""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first = trainer.global_step + self.after if self.steps else None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if self._first is None or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        step = trainer.global_step - self._first
        if self._parts is None and self._operators is None and step >= 0:
            self._first, step = trainer.global_step, 0
            self._begin(trainer, module)
        elif self._parts is not None and step == self.steps:
            self._take(trainer, module, step)
            self._operators = looking(module.device)
        elif self._operators is not None and step == self.steps + LOOKED_AT:
            self._finish(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """A run that was short is told as far as it came."""
        if self._parts is not None and trainer.global_step > self._first:
            self._take(trainer, module, trainer.global_step - self._first)
        if self._text:
            self._finish(trainer, module)
        elif self._first is not None:
            say(f"profile: no steps were left after {self.after} of warm-up")
        self._leave(trainer, module)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._operators is not None:
            self._operators.stop()
        self._leave(trainer, module)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        device = module.device
        wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else lambda: None
        trainer.profiler = self._parts = parts = Parts(trainer.profiler, wait)
        update = module.ema.update

        def timed(*args: Any) -> None:
            with parts.profile(EMA):
                update(*args)

        module.ema.update = timed

    def _take(self, trainer: Trainer, module: LightningModule, steps: int) -> None:
        """The table of the parts; Trainer and average are as they were."""
        self._parts._turn()
        seconds, device = self._parts.seconds, module.device
        self._leave(trainer, module)
        waited = "; the device was waited for where each part ends" if device.type == "cuda" else ""
        images = trainer.datamodule.batch_size
        lines = table(seconds, steps, f"{images} images a step, from step {self._first} on{waited}")
        self._text = "\n".join(lines)

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        """Print and write it, with the operators where they were looked at."""
        if self._operators is not None:
            self._operators.stop()
            steps = trainer.global_step - self._first - self.steps
            self._text += "\n" + "\n".join(operators(self._operators, module.device, steps)) if steps else ""
        path = Path(trainer.default_root_dir) / "profile.txt"
        if trainer.is_global_zero:
            path.write_text(self._text + "\n")
            say(f"{self._text}\nwritten to {shown(path)}")
        self._first, self._operators, self._text = None, None, ""

    def _leave(self, trainer: Trainer, module: LightningModule) -> None:
        if self._parts is not None:
            trainer.profiler, self._parts = self._parts.inner, None
            del module.ema.update  # the class's own again


def table(seconds: Counter[str], steps: int, what: str) -> list[str]:
    """A line a part: its ms a step and its share of a step."""
    whole = sum(seconds.values())
    lines = [f"profile: {steps} steps of {1e3 * whole / steps:.1f} ms; {what}"]
    return lines + [f"  {part:<10}{1e3 * seconds[part] / steps:9.2f} ms {seconds[part] / whole:6.1%}" for part in PARTS]


def looking(device: torch.device) -> torch.profiler.profile:
    """torch's profiler, begun."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it says that it begins and that it ends
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    profiler = torch.profiler.profile(activities=activities)
    profiler.start()
    return profiler


def operators(found: torch.profiler.profile, device: torch.device, steps: int) -> list[str]:
    """The operators with most time of their own, and their share of all operators'."""
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    every = {event.key: getattr(event, name) for event in found.key_averages()}
    whole = sum(every.values()) or 1
    lines = [f"operators by their own time, in {steps} steps after these"]
    longest = sorted(every.items(), key=lambda item: -item[1])[:OPERATORS]
    return lines + [f"  {key[:44]:<46}{time / whole:6.1%}" for key, time in longest]
