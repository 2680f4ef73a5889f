"""Where numbers go while a run goes on: metrics.csv always; beside it W&B (loggers_wandb), TensorBoard."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from anysigma.machine.distributed import shown
from anysigma.machine.writing import written

COLUMNS = ("step", "time", "metric", "value")


class MetricsCSV(Logger):
    """metrics.csv in the run's folder, one number a line: step, unix time, metric, value.

    Lines are only ever appended, and flushed at once; on resume the file is cut back to the checkpoint's step, and a last
    line that was not written to its end goes with it.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def cut_back(self, step: int, final: bool = True) -> None:
        """Drop what was logged after `step`, and half a line: the resumed run will log it again.

        `final` False: the final figures too, which are measured again.
        """
        if self.path.exists():
            kept = [row for row in whole(self.path) if int(row["step"]) <= step]
            kept = [row for row in kept if final or not row["metric"].startswith("final/")]
            with written(self.path) as aside, open(aside, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Raises OSError, with the file and what to do, where the disk takes no more: without its record no run goes on."""
        found = [(name, value) for name, value in metrics.items() if name != "epoch"]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", newline="") as file:
                writer = csv.writer(file)
                if file.tell() == 0:
                    writer.writerow(COLUMNS)
                writer.writerows([step, f"{time.time():.2f}", name, repr(float(value))] for name, value in found)
        except OSError as error:
            why = f"{shown(self.path)} cannot be written ({error.strerror}): the same command goes on from the last save"
            raise OSError(why) from error

    @rank_zero_only
    def log_hyperparams(self, *_: Any) -> None:
        """The config lies in the checkpoint and in .hydra."""


def numbers(path: Path) -> Iterator[tuple[int, str, float]]:
    """The whole lines of a metrics.csv as (step, metric, value); a line that was cut, or is none of ours, is passed over."""
    if path.exists():
        for row in whole(path):
            yield int(row["step"]), row["metric"], float(row["value"])


def whole(path: Path) -> Iterator[dict[str, str]]:
    """The rows that were written to their end."""
    with open(path, newline="") as file:
        lines = (line for line in file if line.endswith("\n"))
        for row in csv.DictReader(lines):
            if tuple(row) == COLUMNS and None not in row.values() and row["step"].isdigit() and number(row["value"]):
                yield row


def number(text: str) -> bool:
    """Whether it is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True
