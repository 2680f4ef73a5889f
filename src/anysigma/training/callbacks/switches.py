"""Threads that follow the free cores, and a record of it, so that a cut run goes on as the uncut one went."""

import csv
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anysigma.machine.distributed import is_first
from anysigma.machine.hardware import MOST_THREADS
from anysigma.machine.threads import Following, Load
from anysigma.machine.writing import written

COLUMNS = ("step", "threads")


class Switches(Callback):
    """Sets the threads of a step before it; a count unlike the last goes to threads.csv (step, threads) before the step.

    A sum over another number of threads differs in its last bit, so the counts are an input of the run: one that goes on
    takes those that were written, up to the last, and then follows the free cores again. They change between optimiser
    steps alone. Of several processes rank 0 decides for all, when figures are logged. `fixed`: `most` from here on, which
    is written too.
    """

    def __init__(self, path: Path, most: int, fixed: bool = False):
        self.path, self.most, self.fixed = path, most, fixed
        self._written: list[tuple[int, int]] = []
        self._following: Following | None = None
        self._seconds = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """What was written before; no line of a run that begins anew."""
        start = trainer.global_step
        found = [line for line in read(self.path) if start > 0 and not (self.fixed and line[0] >= start)]
        self._written = trainer.strategy.broadcast(found)
        if is_first():
            self._write_anew()
        if self.fixed:
            return
        load = Load() if trainer.world_size == 1 else Load(own=lambda: self._seconds)
        self._following = Following(self.most, trainer.world_size // trainer.num_nodes, load)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        before = [threads for at, threads in self._written if at <= step]
        if before and not self.fixed and step <= self._written[-1][0]:
            count = before[-1]
        else:
            count = self.most if self.fixed else self._count(trainer, step)
            if not before or count != before[-1]:
                self._write(step, count)
        if count != torch.get_num_threads():
            torch.set_num_threads(count)

    def _count(self, trainer: Trainer, step: int) -> int:
        if trainer.world_size == 1:
            return self._following.now()
        if self._written and step % trainer.log_every_n_steps:
            return self._written[-1][1]
        here = trainer.node_rank == 0  # the first process decides by what its machine's cores do
        ours = torch.tensor(time.process_time() if here else 0.0, dtype=torch.float64)
        self._seconds = trainer.strategy.reduce(ours, reduce_op="sum").item()
        return trainer.strategy.broadcast(self._following.read() if self._written else self._following.count)

    def _write(self, step: int, count: int) -> None:
        """One line more, on the disk before the step."""
        self._written.append((step, count))
        if is_first():
            with open(self.path, "a", newline="") as file:
                csv.writer(file).writerow((step, count))

    def _write_anew(self) -> None:
        """What counts of it, so that nothing is glued to a line that was cut off."""
        with written(self.path) as aside, open(aside, "w", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *self._written])


def read(path: Path) -> list[tuple[int, int]]:
    """Its whole lines, as (step, threads), in order and of at least one thread; none where there is no such file."""
    if not path.exists():
        return []
    found: list[tuple[int, int]] = []
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        parts = line.strip().split(",")
        if not line.endswith("\n") or len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            continue
        step, count = map(int, parts)
        if 1 <= count <= MOST_THREADS and (not found or step > found[-1][0]):
            found.append((step, count))
    return found
