"""`last.ckpt`: every N steps, at the end, when time is up and when a signal asks."""

import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Last(Checkpoint):
    """Keeps checkpoints/last.ckpt; a first SIGINT or SIGTERM ends training at the next step's boundary with it saved.

    A second signal acts at once. `stopped_by` is the signal's number, or None. Lightning runs checkpoint callbacks
    after all others, so the file holds the step that the others saw.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"Last: every={every}: at least 1 step must lie between two saves")
        self.every, self.stopped_by, self._saved_at = every, None, 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved_at = trainer.global_step
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half an optimiser step is no place to stop
        if trainer.strategy.reduce_boolean_decision(self.stopped_by is not None, all=False):
            trainer.should_stop = True
        due = step % self.every == 0 or step == trainer.max_steps or trainer.should_stop
        if due and step != self._saved_at:
            self._saved_at = step
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        """The handlers as they were; before Lightning gives back its own, else its would stay for good."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if self.stopped_by is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.stopped_by = number
