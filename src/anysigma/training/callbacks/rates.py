"""How fast, how far, how long still."""

import time
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from anysigma.training.callbacks.base import Periodic, report


class Rates(Periodic):
    """Logs, every `every` steps: train/loss, the mean since the last time, train/images_per_s over all ranks with the
    callbacks' own time included, and train/lr.
    """

    def __init__(self, every: int):
        super().__init__(every)
        self._since: tuple[float, int] | None = None
        self._losses: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = (time.perf_counter(), module.images_seen)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *rest: Any) -> None:
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning has divided it by them
        self._losses.append(loss)  # read only every `every` steps: no wait for the device
        super().on_train_batch_end(trainer, module, outputs, *rest)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        (then, seen), now = self._since, time.perf_counter()
        images = module.images_seen - seen
        self._since = (now, module.images_seen)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        loss = torch.stack(self._losses).mean()
        self._losses.clear()
        loss = trainer.strategy.reduce(loss, reduce_op="mean").item()
        report(trainer, {"train/loss": loss, "train/images_per_s": images / (now - then), "train/lr": lr})


class Progress(RichProgressBar):
    """Lightning's Rich bar with images/s and the newest loss and distance, elapsed time and time left."""

    def __init__(self):
        super().__init__(leave=True)

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        shown = {"train/images_per_s": "images/s", "train/loss": "loss", "held_out/loss": "held-out"}
        metrics = trainer.callback_metrics
        distances = {name: name.removeprefix("distance/") for name in metrics if name.startswith("distance/")}
        return {short: f"{metrics[name].item():.4g}" for name, short in {**shown, **distances}.items() if name in metrics}
