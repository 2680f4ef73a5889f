"""`last.ckpt`: every N steps, at the end, when time is up and when a signal asks."""

import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asking:
    """Whether any of the processes was asked to stop, told to all of them at once, one question later.

    A question waits for no device and for no process that computes: it goes out at the end of a step and is answered at
    the end of the next. It travels between hosts (gloo) in a group of its own, whatever carries the gradients: to read a
    number on a device is to wait for all that was given to it before. With one process the answer is immediate.
    """

    def __init__(self, world: int):
        self._group = dist.new_group(backend="gloo") if world > 1 else None
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
    """Keeps checkpoints/last.ckpt; a first SIGINT or SIGTERM ends training at the next step's boundary with it saved.

    Of several processes all stop at the same boundary, one later, whichever was told. A second signal to a process acts
    at once. `stopped_by` is the signal's number, on every process, or None. Lightning runs checkpoint callbacks after all
    others, so the file holds the step that the others saw.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"Last: every={every}: at least 1 step must lie between two saves")
        self.every, self.stopped_by, self._saved_at = every, None, 0
        self._heard: int | None = None  # by this process
        self._asking: Asking | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        self._asking = Asking(trainer.world_size)
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half an optimiser step is no place to stop
        self.stopped_by = self._asking.said(self._heard)
        if self.stopped_by is not None:
            trainer.should_stop = True
        due = step % self.every == 0 or step == trainer.max_steps or trainer.should_stop
        if due and step != self._saved_at:
            self._saved_at = step
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give_back()
        if self.stopped_by is None:  # a signal during the last step
            self.stopped_by = self._asking.at_the_end(self._heard)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        """The handlers as they were; before Lightning gives back its own, else its would stay for good."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self._heard is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self._heard = number
