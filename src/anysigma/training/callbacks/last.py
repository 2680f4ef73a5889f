"""`last.ckpt`: every N steps, at the end, when time is up and when a signal asks."""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from anysigma.machine.signals import SIGNALS

TIME_IS_UP = 1  # as a number among the signals': below all that ask, so that one of them outranks it


class Asking:
    """Whether any of the processes has a reason to stop, told to all of them at once, one question later.

    A question waits for no device and for no process that computes: it goes out at the end of a step and is answered at
    the end of the next. It travels between hosts (gloo) in a group of its own, whatever carries the gradients: to read a
    number on a device is to wait for all that was given to it before. With one process the answer is immediate.
    """

    def __init__(self, world: int, timeout: timedelta | None = None):
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world > 1 else None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def said(self, number: int | None) -> int | None:
        """The highest number that any process gave when this was last called; None where none has. Every process calls."""
        if self._group is None:
            return number
        found = self._answer()
        if found is None:
            self._ask(number)
        return found

    def at_the_end(self, number: int | None) -> int | None:
        """The same of now, waited for."""
        found = self.said(number)
        return found if found is not None or self._group is None else self._answer()

    def _ask(self, number: int | None) -> None:
        flag = torch.tensor(number or 0)
        self._asked = (flag, dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True))

    def _answer(self) -> int | None:
        if self._asked is None:
            return None
        (flag, work), self._asked = self._asked, None
        work.wait()
        return int(flag) or None


class Last(Checkpoint):
    """Keeps checkpoints/last.ckpt; a signal or the end of the time ends training at the next step's boundary, saved.

    Of several processes all stop at the same boundary, one later, whichever has a reason. `stopped_by` is the signal's
    number, on every process, or None. `seconds`: of this start, counted from its first step on. Lightning runs checkpoint
    callbacks after all others, so the file holds the step that the others saw.
    """

    seconds = math.inf

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"Last: every={every}: at least 1 step must lie between two saves")
        self.every, self.stopped_by, self._saved_at = every, None, 0
        self._end = math.inf
        self._asking: Asking | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved_at, self._end = trainer.global_step, time.monotonic() + self.seconds
        self._asking = Asking(trainer.world_size, getattr(trainer.strategy, "timeout", None))

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half an optimiser step is no place to stop
        if self._stops(self._asking.said(self._reason)):
            trainer.should_stop = True
        due = step % self.every == 0 or step == trainer.max_steps or trainer.should_stop
        if due and step != self._saved_at:
            self._saved_at = step
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.stopped_by is None:  # a signal during the last step
            self._stops(self._asking.at_the_end(self._reason))

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return self._end - time.monotonic()

    @property
    def _reason(self) -> int | None:
        """What this process has for an end."""
        return SIGNALS.number or (TIME_IS_UP if time.monotonic() >= self._end else None)

    def _stops(self, reason: int | None) -> bool:
        """Whether what any process has for an end is one."""
        self.stopped_by = None if reason == TIME_IS_UP else reason
        return reason is not None
