"""A training run from its objects to its result."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.images import to_uint8
from anysigma.machine.choice import TRIAL
from anysigma.machine.distributed import say, shown
from anysigma.machine.hardware import OF_GPU, OF_SAMPLING, Hardware
from anysigma.metrics.features import NoFeatures
from anysigma.metrics.fidelity import Features
from anysigma.report.pictures import grid, save_png
from anysigma.runs.checkpoint import read, warm_start, weights_digest, weights_of
from anysigma.runs.listing import last
from anysigma.training.callbacks.base import report_image
from anysigma.training.callbacks.switches import Switches
from anysigma.training.checkpoint_io import AtomicCheckpointIO
from anysigma.training.clipping import Clipping
from anysigma.training.ending import Outcome, finish
from anysigma.training.module import DiffusionModule
from anysigma.training.preemption import fit
from anysigma.training.rehearsal import Rehearsal, settle, words
from anysigma.training.together import Training, beginning

SHOWN = 64  # training images in samples/data.png

# What Lightning says about things that are as they should be here.
SILENCED = (
    ".*in eval mode at the start of training.*",
    ".*smaller than the logging interval.*",
    ".*does not have many workers.*",
    ".*your dataloader is not resumable.*",
    ".*dataloader is not resumable.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`enable_checkpointing.*",
    ".*lr_scheduler.step.*before.*optimizer.step.*",
    "Grad strides do not match bucket view strides",
)


@dataclass
class Facts:
    """What a run's checkpoints say of it: resolved config, identity, the weights it began with, which W&B run it is."""

    config: dict[str, Any]
    identity: dict[str, Any]
    init_sha256: str | None = None
    data_hash: str | None = None
    wandb: dict[str, str] | None = None


class TrainingJob:
    """Everything one run needs. `features`, `loggers`, `trainer` and callbacks that measure are factories.

    They wait for what only the run knows: its folder, the one feature network, the hardware as settled.
    """

    left = math.inf  # seconds of trainer.max_time, where an earlier start in this process has used some

    def __init__(
        self,
        hardware: Hardware,
        module: DiffusionModule,
        data: ImageDataModule,
        features: Callable[[], Features],
        callbacks: Mapping[str, Callback | partial],
        loggers: Mapping[str, Callable[..., Logger]],
        trainer: Callable[..., Trainer],
    ):
        self.hardware, self.module, self.data, self.features = hardware, module, data, features
        self.callbacks, self.loggers, self.trainer = callbacks, loggers, trainer

    def run(self, folder: Path, facts: Facts, start: Path | None = None) -> Outcome:
        """Train, or go on, or begin with the averaged weights of `start`."""
        quieten()
        before = read(last(folder)) if last(folder).exists() else None
        self.data.setup()
        self.data.hold_to(before and before["data_hash"])
        facts.data_hash = self.data.hash
        hardware = self._settle(facts, before, start)
        if os.environ.get(TRIAL) == "only":  # before anything of a run is made
            return Outcome(0, False, [])
        features = self._features()
        loggers: list[Logger] = []
        code, done = 1, False
        try:
            loggers += [logger(folder=folder, config=facts.config) for logger in self.loggers.values()]
            facts.wandb = next((one.record for one in loggers if hasattr(one, "record")), (before or {}).get("wandb"))
            together = partial(Training, lambda: beginning(facts.identity, facts.data_hash, before))
            trainer = self._trainer(folder, facts, hardware, features, loggers, together)
            code = self._train(trainer, folder, before["step"] if before else 0)
            done = code == 0 and trainer.global_step >= trainer.max_steps
        finally:
            if not done:  # else the final figures are theirs too
                finish(loggers, code)
        return Outcome(code, done, loggers)

    def _settle(self, facts: Facts, before: dict[str, Any] | None, start: Path | None) -> Hardware:
        """First weights and hardware; says what of the hardware is another than before."""
        record = before and before["config"].get("hardware")
        hardware, sampling, tried = settle(self.rehearsal(), record)
        of_sampling = {name: getattr(sampling, name) for name in OF_SAMPLING}
        facts.config = {**facts.config, "hardware": {**asdict(hardware), "sampling": of_sampling, "tried": tried}}
        denoisers = (self.module.denoiser, self.module.ema)
        if before is not None:
            facts.init_sha256 = before["init_sha256"]
            say_changes(record if isinstance(record, dict) else {}, facts.config["hardware"])
        elif start is not None:
            checkpoint = read(start)
            facts.init_sha256 = weights_digest(weights_of(checkpoint))
            warm_start(denoisers, checkpoint)
        for denoiser in denoisers:
            hardware.apply(denoiser.network)
        self.module.fused = hardware.fused
        parameters = sum(p.numel() for p in self.module.denoiser.parameters())
        machine = f"{hardware.accelerator}, {words(hardware)}"
        say(f"{parameters / 1e6:.2f} M parameters, {len(self.data.train)} images, {machine}")
        return hardware

    def rehearsal(self) -> Rehearsal:
        """What a trial of the hardware would do."""
        said, hardware = self.trainer.keywords, self.hardware.placed()
        clip = Clipping(said["gradient_clip_val"], said["gradient_clip_algorithm"])
        batch = self.data.share(hardware.processes, said["accumulate_grad_batches"])
        return Rehearsal(self.module, hardware, batch, clip)

    def _train(self, trainer: Trainer, folder: Path, resumed: int) -> int:
        if resumed:
            say(f"going on from step {resumed} of {trainer.max_steps}")
        for logger in trainer.loggers:
            if hasattr(logger, "cut_back"):
                logger.cut_back(resumed)
        if resumed == 0 and trainer.is_global_zero:
            self._show_data(trainer, folder)
        signal = fit(trainer, self.module, self.data, last(folder) if resumed else None, self.left)
        if signal is not None or trainer.global_step < trainer.max_steps:
            why = "time is up" if signal is None else "stopped"
            step = f"at step {trainer.global_step} and saved"
            say(f"{why} {step}; the same command goes on from there: {shown(folder)}")
        return 0 if signal is None else 128 + signal

    def _show_data(self, trainer: Trainer, folder: Path) -> None:
        """samples/data.png: the run's first images as the network gets them, flips and all; no points of a plane."""
        data, n = self.data, len(self.data.train)
        if data.shape[1] * data.shape[2] > 1:
            first = Order(n, min(SHOWN, n), data.seed, total=1, flips=data.flips).batch(0)
            picture = grid(to_uint8(data.on_after_batch_transfer(torch.tensor(first), 0)))
            save_png(picture, folder / "samples" / "data.png")
            report_image(trainer, "samples/data", picture)

    def _features(self) -> Features | None:
        try:
            return self.features()
        except (NoFeatures, FileNotFoundError) as error:
            say(f"no distance: {error}")
            return None

    def _trainer(
        self, folder: Path, facts: Facts, hardware: Hardware, features: Features | None, loggers: list[Logger],
        together: Callable[..., Training],
    ) -> Trainer:  # fmt: skip
        measures = {name: c for name, c in self.callbacks.items() if isinstance(c, partial)}
        callbacks = [c for name, c in self.callbacks.items() if name not in measures]
        if features is not None:
            callbacks += [c(features=features) for c in measures.values()]
        record = folder / "threads.csv"
        if hardware.follows or record.exists():
            callbacks.append(Switches(record, hardware.most_threads, fixed=not hardware.follows))
        trainer = self.trainer(
            **hardware.lightning(together), callbacks=callbacks, logger=loggers, default_root_dir=folder, max_epochs=1,
            use_distributed_sampler=False, enable_model_summary=False, num_sanity_val_steps=0,
            benchmark=hardware.cudnn_benchmark,
        )  # fmt: skip
        self.data.share(trainer.world_size, trainer.accumulate_grad_batches)  # refused here, before processes start
        trainer.strategy.checkpoint_io = AtomicCheckpointIO(asdict(facts), trainer.accumulate_grad_batches)
        return trainer


def say_changes(before: dict[str, Any], now: dict[str, Any]) -> None:
    """One line where a run goes on in another precision, another way or on another number of processes."""
    names = ("accelerator", "precision", "devices", "num_nodes", "memory_format", "fused", *OF_GPU, "threads")
    changed = [f"hardware.{n}={now[n]}, before {before[n]}" for n in names if now[n] != before.get(n, now[n])]
    if changed:
        say(f"going on otherwise than before, no longer bit for bit: {'; '.join(changed)}")


def quieten() -> None:
    """Leave only what a person can act on."""
    for pattern in SILENCED:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
