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
    def cut_back(self, step: int, final: bool = True) -> None:
        """Drop what was logged after `step`, and half a line: the resumed run will log it again.

        `final` False: the final figures too, which are measured again.
        """
        if self.path.exists():
            whole = self.path.read_text().rpartition("\n")[0].splitlines()
            kept = [row for row in csv.DictReader(whole) if row["value"] and row["step"].isdigit()]
            kept = [row for row in kept if int(row["step"]) <= step and (final or not row["metric"].startswith("final/"))]
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
        logs, job, *names = place(folder)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(logs / "cache" / "wandb"))
        mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
        settings = {"console": "off", "init_timeout": 20, "silent": True, "x_disable_stats": mode != "online"}
        super().__init__(
            name=names[-1], save_dir=str(folder), project=project, id="-".join(names)[-64:], resume="allow", job_type=job,
            group="/".join(names[:-1]) or None, config=config, mode=mode, settings=self._settings(settings),
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

        pictures = {f"final/{name}": wandb.Image(still(picture)) for name, picture in result.pictures.items()}
        self.experiment.log({"final/table": figures(result), **pictures})
        for row in result.rows:
            self.experiment.summary[f"final/{row.metric}"] = row.value

    @rank_zero_only
    def log_study(self, result: Any) -> None:
        """One section of the dashboard a study: its tables, its plots as charts, its pictures; figures in the summary."""
        import wandb

        found: dict[str, Any] = {f"{result.study}/{name}": wandb.Image(still(p)) for name, p in result.pictures.items()}
        for name, plot in result.plots.items():
            xs, ys, keys = (
                [list(c.x) for c in plot.curves],
                [list(c.y) for c in plot.curves],
                [c.label for c in plot.curves],
            )
            found[f"{result.study}/{name}"] = wandb.plot.line_series(xs, ys, keys, title=plot.caption, xname=plot.x)
        for number, table in enumerate(result.tables, 1):
            data = [list(row) for row in table.rows]
            found[f"{result.study}/table {number}"] = wandb.Table(columns=list(table.columns), data=data)
        if result.rows:
            found[f"{result.study}/figures"] = figures(result)
        self.experiment.log(found)
        for row in result.rows:
            setting = "/".join(str(value) for name, value in row.params.items() if name in ("sigma", "S", "tau"))
            self.experiment.summary["/".join(filter(None, (result.study, row.metric, setting)))] = row.value

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """Close the run with the exit code that its process will have."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=exit_code)


def place(folder: Path) -> list[Any]:
    """logs/<job>/<names …> as [the logs folder, job, names …]; a folder elsewhere as [itself, "train", its name]."""
    path = Path(folder).absolute()
    if "logs" not in path.parts or path.parts[-1] == "logs":
        return [path, "train", path.name]
    at = len(path.parts) - path.parts[::-1].index("logs")
    job, *names = path.parts[at:]
    return [Path(*path.parts[:at]), job, *(names or [job])]


def figures(result: Any) -> Any:
    """Rows as a W&B table."""
    import wandb

    names = ["metric", "value", "error", "n", "better", "beside"]
    settings = [" ".join(f"{k}={v}" for k, v in row.params.items()) for row in result.rows]
    cells = [
        [result.study, *(getattr(row, name) for name in names), setting]
        for row, setting in zip(result.rows, settings, strict=True)
    ]
    return wandb.Table(columns=["study", *names, "setting"], data=cells)


def still(picture: np.ndarray) -> np.ndarray:
    """A picture, or an animation's last frame."""
    return picture if picture.ndim == 3 else picture[-1]


def has_key() -> bool:
    """Whether a W&B key is at hand: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
