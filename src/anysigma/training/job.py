"""A training run from its objects to its result."""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger

from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.images import to_uint8
from anysigma.machine.distributed import rank_and_world, say, shown
from anysigma.machine.hardware import Hardware
from anysigma.metrics.features import NoFeatures
from anysigma.metrics.fidelity import Features
from anysigma.report.pictures import grid, save_png
from anysigma.report.results import Result, save_pictures, write_results
from anysigma.runs.checkpoint import load_weights, read, warm_start
from anysigma.studies.base import Model, Study, weights_digest
from anysigma.training.callbacks.base import report_image
from anysigma.training.callbacks.last import Last
from anysigma.training.checkpoint_io import AtomicCheckpointIO
from anysigma.training.module import DiffusionModule

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
)


class TrainingJob:
    """Everything one run needs. `features`, `loggers`, `trainer` and callbacks that measure are factories.

    They wait for what only the run knows: its folder, the one feature network, the hardware as settled.
    """

    def __init__(
        self,
        hardware: Hardware,
        module: DiffusionModule,
        data: ImageDataModule,
        features: Callable[[], Features],
        callbacks: Mapping[str, Callback | partial],
        loggers: Mapping[str, Callable[..., Logger]],
        trainer: Callable[..., Trainer],
        study: Study,
    ):
        self.hardware, self.module, self.data, self.features = hardware, module, data, features
        self.callbacks, self.loggers, self.trainer = callbacks, loggers, trainer
        self.study = study

    def run(self, folder: Path, config: dict[str, Any], start: Path | None = None) -> int:
        """Train (or go on, or begin with the averaged weights of `start`), measure, write; returns the exit code."""
        quieten()
        self.data.setup()
        features = self._features()
        parameters = sum(p.numel() for p in self.module.denoiser.parameters())
        hardware = self.hardware.resolved(self.data.shape, parameters)
        config = {**config, "hardware": {**config["hardware"], **asdict(hardware)}}
        denoisers = (self.module.denoiser, self.module.ema)
        if start is not None:
            warm_start(denoisers, read(start))
        for denoiser in denoisers:
            hardware.apply(denoiser.network)
        loggers = [logger(folder=folder, config=config) for logger in self.loggers.values()]
        trainer = self._trainer(folder, config, hardware, features, loggers)
        machine = f"{hardware.accelerator}, {hardware.precision}"
        say(f"{parameters / 1e6:.2f} M parameters, {len(self.data.train)} images, {machine}")
        code = 1
        try:
            code = self._run(trainer, folder, features)
        finally:
            for logger in loggers:
                if hasattr(logger, "finish"):
                    logger.finish(code)
        return code

    def _run(self, trainer: Trainer, folder: Path, features: Features | None) -> int:
        last = folder / "checkpoints" / "last.ckpt"
        resumed = read(last)["step"] if last.exists() else 0
        if last.exists():
            say(f"going on from step {resumed} of {trainer.max_steps}")
        for logger in trainer.loggers:
            if hasattr(logger, "cut_back"):
                logger.cut_back(resumed)
        if resumed == 0 and trainer.is_global_zero:
            self._show_data(trainer, folder)
        if resumed < trainer.max_steps:
            trainer.fit(self.module, datamodule=self.data, ckpt_path=last if last.exists() else None)
            signal = next(c for c in trainer.callbacks if isinstance(c, Last)).stopped_by
            if signal is not None:
                say(f"stopped at step {trainer.global_step} and saved; the same command goes on from there: {shown(folder)}")
                return 128 + signal
        else:
            load_weights(self.module.ema, read(last))
        return self._finish(trainer, folder, features, max(trainer.global_step, resumed))

    def _show_data(self, trainer: Trainer, folder: Path) -> None:
        """samples/data.png: the run's first images as the network gets them, flips and all; no points of a plane."""
        data, n = self.data, len(self.data.train)
        if data.shape[1] * data.shape[2] > 1:
            first = Order(n, min(SHOWN, n), data.seed, total=1, flips=data.flips).batch(0)
            picture = grid(to_uint8(data.on_after_batch_transfer(torch.tensor(first), 0)))
            save_png(picture, folder / "samples" / "data.png")
            report_image(trainer, "samples/data", picture)

    def _finish(self, trainer: Trainer, folder: Path, features: Features | None, step: int) -> int:
        ema = self.module.ema.to(trainer.strategy.root_device)
        card = {
            "weights": f"ema {ema.decay}",
            "weights_sha256": weights_digest(ema),
            "step": step,
            "precision": trainer.precision,
        }
        model = Model(ema, self.data.shape, card)
        result = self.study.run(model, self.module.sampler, self.data, features, folder)
        if rank_and_world()[0] == 0:
            self._write(trainer, folder, result, step)
        return 0

    def _write(self, trainer: Trainer, folder: Path, result: Result, step: int) -> None:
        paths = save_pictures(result, folder / "samples")
        for logger in trainer.loggers:
            logger.log_metrics({f"final/{row['metric']}": row["value"] for row in result.rows}, step=step)
            if hasattr(logger, "log_final"):
                logger.log_final(result, step=step)
        write_results(folder / "results.json", [result], step=step, lines=result.lines, pictures=[str(p) for p in paths])

    def _features(self) -> Features | None:
        try:
            return self.features()
        except (NoFeatures, FileNotFoundError) as error:
            say(f"no distance: {error}")
            return None

    def _trainer(
        self, folder: Path, config: dict, hardware: Hardware, features: Features | None, loggers: list[Logger]
    ) -> Trainer:
        measures = {name: c for name, c in self.callbacks.items() if isinstance(c, partial)}
        callbacks = [c for name, c in self.callbacks.items() if name not in measures]
        if features is not None:
            callbacks += [c(features=features) for c in measures.values()]
        trainer = self.trainer(
            **hardware.lightning(), callbacks=callbacks, logger=loggers, default_root_dir=folder, max_epochs=1,
            use_distributed_sampler=False, enable_model_summary=False, num_sanity_val_steps=0,
        )  # fmt: skip
        self.data.share(trainer.world_size, trainer.accumulate_grad_batches)  # refused here, before processes start
        trainer.strategy.checkpoint_io = AtomicCheckpointIO(config, trainer.accumulate_grad_batches)
        return trainer


def quieten() -> None:
    """Leave only what a person can act on."""
    for pattern in SILENCED:
        warnings.filterwarnings("ignore", pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
