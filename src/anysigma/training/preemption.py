"""Training that a signal or a time limit may end: Lightning's own ways with them are off, ours are on."""

import math
from pathlib import Path

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from anysigma.machine.signals import SIGNALS
from anysigma.machine.watch import children
from anysigma.training.callbacks.last import Last


def fit(
    trainer: Trainer, module: LightningModule, data: LightningDataModule, path: Path | None, left: float = math.inf
) -> int | None:
    """Train, from the checkpoint at `path` where there is one; returns the signal that ended it, on all ranks, or None.

    `left`: seconds of the time limit, where a part of it has gone by.
    """
    last = next(c for c in trainer.callbacks if isinstance(c, Last))
    take_over(trainer, last, left)
    with SIGNALS.held():
        trainer.fit(module, datamodule=data, ckpt_path=path)
    return last.stopped_by or SIGNALS.number  # the latter where it came to this process after the last step


def take_over(trainer: Trainer, last: Last, left: float = math.inf) -> None:
    """Signals, time limits, Slurm's requeue and the choice of the checkpoint are ours.

    Lightning speaks to other processes from inside a signal handler, asks all of them in every step whether one was
    signalled (a wait, for the device too) and whether time is up (another), writes hpc_ckpt_N.ckpt under Slurm, takes up
    what lies there under such a name, and requeues the job whether or not anything was saved.
    """
    trainer._signal_connector.register_signal_handlers = nothing
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = nothing
    trainer._checkpoint_connector._parse_ckpt_path = the_given
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False
    SIGNALS.children = children
    for timer in [c for c in trainer.callbacks if isinstance(c, Timer)]:  # trainer.max_time
        trainer.callbacks.remove(timer)
        last.seconds = min(left, timer.time_remaining())


def nothing() -> None:
    """In place of what Lightning would do."""


def the_given(what: object, path: Path | None, **_: object) -> Path | None:
    """The file that a run goes on from, or none; never one that Lightning finds."""
    return path
