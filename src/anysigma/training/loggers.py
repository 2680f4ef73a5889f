"""Where numbers go while a run goes on: metrics.csv always, W&B beside it (TensorBoard: loggers_tensorboard)."""

import csv
import netrc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

COLUMNS = ("step", "time", "metric", "value")


class MetricsCSV(Logger):
    """metrics.csv in the run's folder, one number a line: step, unix time, metric, value.

    Lines are only ever appended, and flushed at once; on resume the file is cut back to the checkpoint's step.
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
    def cut_back(self, step: int) -> None:
        """Drop what was logged after `step`: the resumed run will log it again."""
        if self.path.exists():
            with open(self.path, newline="") as file:
                kept = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
            aside = self.path.with_suffix(".part")
            with open(aside, "w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(kept)
            os.replace(aside, self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            numbers = ((name, value) for name, value in metrics.items() if name != "epoch")
            writer.writerows([step, f"{time.time():.2f}", name, repr(float(value))] for name, value in numbers)

    @rank_zero_only
    def log_hyperparams(self, *_: Any) -> None:
        """The config lies in the checkpoint and in .hydra."""


class Wandb(WandbLogger):
    """A W&B run that needs no account, no prompt and no network.

    `mode`: online, offline, disabled, or null: WANDB_MODE if set, else online where a key is found, else offline.
    An online start that fails falls back to offline with one line. The run's id follows from the folder's name.
    """

    def __init__(self, folder: Path, config: dict[str, Any], project: str = "anysigma", mode: str | None = None):
        folder = Path(folder)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(folder.parent.parent / "cache" / "wandb"))
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        settings = {"console": "off", "init_timeout": 20, "silent": True, "x_disable_stats": mode != "online"}
        super().__init__(
            name=folder.name, save_dir=str(folder), project=project, id=folder.name[-64:], resume="allow",
            config=config, mode=mode, settings=self._settings(settings),
        )  # fmt: skip
        self._wandb_init.pop("anonymous", None)  # it only warns now
        self._start(mode)

    @staticmethod
    def _settings(values: dict[str, Any]) -> Any:
        import wandb

        return wandb.Settings(**values)

    @rank_zero_only
    def _start(self, mode: str) -> None:
        import wandb

        try:
            run = self.experiment
        except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            if mode != "online":
                raise
            print(f"W&B cannot be reached ({str(error).splitlines()[0]}): this run is kept offline")
            self._wandb_init["mode"] = "offline"
            run = self.experiment
        run.define_metric("distance/*", step_metric="trainer/global_step", summary="min")
        run.define_metric("held_out/*", step_metric="trainer/global_step", summary="min")

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **_: Any) -> None:
        import wandb

        self.experiment.log({key: [wandb.Image(image) for image in images], "trainer/global_step": step})

    @rank_zero_only
    def log_final(self, result: Any, **_: Any) -> None:
        """The final pictures, the rows as a table, and each value in the summary."""
        import wandb

        names = ["study", "metric", "value", "error", "floor", "floor_sd", "n"]
        table = wandb.Table(columns=names, data=[[row.get(name) for name in names] for row in result.rows])
        pictures = {f"final/{name}": wandb.Image(picture) for name, picture in result.pictures.items()}
        self.experiment.log({"final/table": table, **pictures})
        for row in result.rows:
            self.experiment.summary[f"final/{row['metric']}"] = row["value"]

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """Close the run with the exit code that its process will have."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)


def has_key() -> bool:
    """Whether a W&B key is at hand: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
