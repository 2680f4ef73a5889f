"""How fast, how far, how long still."""

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor

from anysigma.machine.flops import forward_flops, peak
from anysigma.machine.memory import memory_gib
from anysigma.training.callbacks.base import Periodic, report


class Rates(Periodic):
    """Logs, every `every` steps, over what lies between: train/loss, its mean; train/images_per_s of all ranks, with the
    callbacks' own time; train/data_wait, the share of the time in which this rank waited for its next batch; and as they
    stand: train/lr; train/memory_gib of this rank, on a GPU the most since the last time.

    train/mfu, where the GPU's peak is known: model FLOP utilisation, 3 · forward FLOPs of an image · images/s / peak.
    Nothing here waits for the device between two of these lines; the clocks are the host's. Losses that are not logged yet
    are part of the checkpoint, so that a cut run logs the means of the uncut one.
    """

    def __init__(self, every: int):
        super().__init__(every)
        self._since: tuple[float, int] | None = None
        self._trainer: Trainer | None = None
        self._losses: list[Tensor] = []  # of this rank's micro-steps
        self._before = torch.empty(0)  # of optimiser steps before the run was cut, means over ranks
        self._fetching, self._waited, self._of_peak = 0.0, 0.0, None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        self._of_peak = share_of_peak(trainer, module)
        loop = trainer.fit_loop.epoch_loop
        loop._on_before_fetch = self._noted(loop._on_before_fetch)  # no hook lies between the callbacks' end and it
        self._since, self._waited = (time.perf_counter(), module.images_seen), 0.0

    def _noted(self, fetch: Callable[[], None]) -> Callable[[], None]:
        def noted() -> None:
            self._fetching = time.perf_counter()
            fetch()

        return noted

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._waited += time.perf_counter() - self._fetching

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *rest: Any) -> None:
        loss = outputs["loss"].detach() * trainer.accumulate_grad_batches  # Lightning has divided it by them
        self._losses.append(loss)  # read only every `every` steps: no wait for the device
        if module.left_out and not trainer.fit_loop.epoch_loop._should_accumulate():
            del self._losses[-trainer.accumulate_grad_batches :]  # no step was taken of them
        super().on_train_batch_end(trainer, module, outputs, *rest)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        loss = self._by_step().mean().item()
        self._losses.clear()
        self._before = torch.empty(0)
        (then, seen), now = self._since, time.perf_counter()  # after the device has come so far
        rate, waited = (module.images_seen - seen) / (now - then), self._waited / (now - then)
        self._since, self._waited = (now, module.images_seen), 0.0
        metrics = {
            "train/loss": loss, "train/images_per_s": rate, "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/data_wait": waited, "train/memory_gib": memory_gib(module.device),
            "train/mfu": None if self._of_peak is None else rate * self._of_peak,
        }  # fmt: skip
        report(trainer, {name: value for name, value in metrics.items() if value is not None})

    def _by_step(self) -> Tensor:
        """The losses since they were last logged, one an optimiser step, means over its micro-steps and over ranks."""
        if not self._losses:
            return self._before
        since = torch.stack(self._losses).view(-1, self._trainer.accumulate_grad_batches).mean(1)
        return torch.cat([self._before, self._trainer.strategy.reduce(since, reduce_op="mean").cpu()])

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self._by_step()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = state["losses"]


def share_of_peak(trainer: Trainer, module: LightningModule) -> float | None:
    """What a training image a second takes of all devices' peak: 3 · forward FLOPs / peak; None where that is not known."""
    most = peak(module.device, trainer.precision)
    flops = forward_flops(module.ema.network, module.shape) if most is not None else None
    return None if flops is None else 3 * flops / (most * trainer.world_size)


class Progress(RichProgressBar):
    """Lightning's Rich bar with images/s and the newest loss and distance, elapsed time and time left."""

    def __init__(self):
        super().__init__(leave=True)

    def get_metrics(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        shown = {"train/images_per_s": "images/s", "train/loss": "loss", "held_out/loss": "held-out"}
        metrics = trainer.callback_metrics
        distances = {name: name.removeprefix("distance/") for name in metrics if name.startswith("distance/")}
        return {short: f"{metrics[name].item():.4g}" for name, short in {**shown, **distances}.items() if name in metrics}
