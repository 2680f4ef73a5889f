"""When things happen during training, and where what they find is written."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class Periodic(Callback):
    """Runs `act` after every `every` optimiser steps, after the last step, and nowhere twice.

    Raises ValueError for `every` < 1.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"{type(self).__name__}: every={every}: at least 1 step must lie between two calls")
        self.every, self.acted_at = every, 0

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        """What is done; on every rank."""
        raise NotImplementedError

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # between micro-steps the step is still the one before, at which a run that goes on has acted
        due = step % self.every == 0 or step == trainer.max_steps
        if due and step != self.acted_at:
            self.acted_at = step
            self.act(trainer, module)


def report(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Numbers at the present step: to every logger, and to what checkpoints watch."""
    for name, value in metrics.items():
        trainer.callback_metrics[name] = torch.tensor(value)
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.global_step)


def report_image(trainer: Trainer, name: str, picture: np.ndarray) -> None:
    """A picture `[H, W, 3]` uint8 at the present step: to every logger that takes pictures."""
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, [picture], step=trainer.global_step)
