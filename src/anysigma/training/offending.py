"""The batch of a step again: positions, images and t are functions of the seed, so nothing need be kept of it."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from anysigma.data.datamodule import ImageDataModule, Order, unskipped
from anysigma.machine.distributed import shown
from anysigma.training.module import DiffusionModule

NAMED = 8  # images in a line
COLUMNS = ("step", "position", "image", "mirrored", "t")


@dataclass(frozen=True)
class Batch:
    """What step k, from 0, trained on, of all processes and micro-steps: `number` in the stream, and a row an image."""

    k: int
    number: int
    rows: list[tuple[int, int, bool, int]]  # position, image, mirrored, t

    @staticmethod
    def of(module: DiffusionModule, data: ImageDataModule, k: int) -> "Batch":
        """The batch, computed again."""
        B, n = data.batch_size, len(data.train)
        number = unskipped(k, data.skipped)
        entries = Order(n, B, data.seed, total=0, flips=data.flips).batch(number)
        positions = torch.arange(number * B, (number + 1) * B)
        t, _ = module.objective.draw_t(module.draws_of_t.uniform(positions), module.denoiser.process.T)
        rows = zip(positions.tolist(), entries, t.tolist(), strict=True)
        return Batch(k, number, [(p, entry % n, entry >= n, at) for p, entry, at in rows])

    def line(self) -> str:
        """Its first images and their t."""
        first = self.rows[:NAMED]
        images, ts = ([str(row[i]) for row in first] for i in (1, 3))
        more = ", …" if len(self.rows) > NAMED else ""
        return f"images {', '.join(images)}{more} at t = {', '.join(ts)}{more}"

    def write(self, path: Path) -> str:
        """Append all of it to a table; returns where that is, in words."""
        new = not path.exists()
        with open(path, "a", newline="") as file:
            table = csv.writer(file)
            if new:
                table.writerow(COLUMNS)
            table.writerows((self.k + 1, *row) for row in self.rows)
        return f"all {len(self.rows)} in {shown(path)}"
