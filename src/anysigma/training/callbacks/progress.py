"""How fast, how far, how long still."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from anysigma.training.callbacks.base import Periodic, report


class Throughput(Periodic):
    """Logs train/images_per_s over all ranks and train/lr, every `every` steps, the callbacks' own time included."""

    def __init__(self, every: int):
        super().__init__(every)
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since = (time.perf_counter(), trainer.global_step)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        (then, step), now = self._since, time.perf_counter()
        images = (trainer.global_step - step) * images_per_step(trainer)
        self._since = (now, trainer.global_step)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        report(trainer, {"train/images_per_s": images / (now - then), "train/lr": lr})


def images_per_step(trainer: Trainer) -> int:
    """Images of one optimiser step, over all ranks and micro-steps."""
    return trainer.datamodule.batch_size * trainer.world_size * trainer.accumulate_grad_batches


class Progress(RichProgressBar):
    """Lightning's Rich bar with images/s and the newest loss and distance, elapsed time and time left."""

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        shown = {"train/images_per_s": "images/s", "train/loss": "loss", "held_out/loss": "held-out"}
        metrics = trainer.callback_metrics
        distances = {name: name.removeprefix("distance/") for name in metrics if name.startswith("distance/")}
        return {short: f"{metrics[name].item():.4g}" for name, short in {**shown, **distances}.items() if name in metrics}
