"""W&B beside metrics.csv: what a run and an evaluation hand over to it, and that it can cost them nothing."""

import importlib.util
import netrc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from anysigma.machine.distributed import is_first, shown
from anysigma.report.results import Result
from anysigma.training.aside import Aside
from anysigma.training.loggers import numbers
from anysigma.training.wandb_content import charts, figures, still, summary_name
from anysigma.training.wandb_id import tracked
from anysigma.training.wandb_run import WandbRun, reason, release

# Seconds for which a start waits for W&B's, so that as a rule it is over before data workers are forked.
START = 3.0
# Seconds at the end for a process that was told by a signal to end.
HURRY = 10.0


class Wandb(Logger):
    """A W&B run that needs no account, no prompt, no network, and that training neither waits for nor depends on.

    `mode`: online, offline, disabled, or null: WANDB_MODE if set, else online where a key is found, else offline.
    An online start that fails falls back to offline with one line. `patience`: seconds that W&B may take at the end for what
    it has not sent by then. Whatever W&B raises costs one line, once; then it is left alone, and metrics.csv goes on: it is
    the truth. `record` says which W&B run this is (see wandb_id.tracked), None beside the first process. Raises ValueError
    for another `mode`.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], project: str = "anysigma", mode: str | None = None, patience: float = 45
    ):
        super().__init__()
        self.folder, self.patience, self.record = Path(folder), patience, None
        self._aside: Aside | None = None
        self._results: list[Result] = []
        mode = asked(mode)
        if is_first() and mode != "disabled":
            try:
                self.record = tracked(self.folder)
                self._start(config, project, mode)
            except Exception as error:
                self._failed(error)

    def _start(self, config: dict[str, Any], project: str, mode: str) -> None:
        logs, job, *names = place(self.folder)
        for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            os.environ.setdefault(name, str(logs / "cache" / "wandb"))
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # whose exporter waits at exit for a server that is down
        os.environ.pop("WANDB_SERVICE", None)  # of a process that started this one: what it holds outlives this one
        import wandb  # noqa: F401  here, and not in the thread while data workers are forked

        self._run = WandbRun(
            self.folder, id=self.record["id"], name=names[-1], group="/".join(names[:-1]) or None, job_type=job,
            project=project, mode=mode, config=config, patience=self.patience,
        )  # fmt: skip
        self._aside = Aside(self._failed)
        self._aside(self._run.open)
        self._aside.wait(START)

    def _failed(self, error: BaseException) -> None:
        absent = isinstance(error, ImportError) and importlib.util.find_spec("wandb") is None
        why = "it is not installed (pip install wandb)" if absent else reason(error)
        print(f"W&B is left alone: {why}; figures are in {shown(self.folder)}", flush=True)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return self.record["id"] if self.record else ""

    def _later(self, function: Callable[..., None], *args: Any) -> None:
        if self._aside is not None:
            self._aside(function, *args)

    @rank_zero_only
    def cut_back(self, step: int, final: bool = True) -> None:
        """Training begins after `step`: what W&B lacks up to there is told it from metrics.csv.

        `final` False: the final figures are measured again; they join the last step's row, which waits for them.
        """
        self._later(self._go_on, step)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        self._later(self._log, row, step)

    @rank_zero_only
    def log_hyperparams(self, *_: Any) -> None:
        """W&B has the config from the start."""

    @rank_zero_only
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **_: Any) -> None:
        self._later(self._images, key, images, step)

    @rank_zero_only
    def log_final(self, result: Result, step: int | None = None) -> None:
        """The final pictures, the rows as a table, and each value in the summary."""
        self._later(self._final, result, step)

    @rank_zero_only
    def log_study(self, result: Result) -> None:
        """One section of the dashboard a study: its tables, its plots as charts, its pictures; figures in the summary."""
        self._later(self._study, result)

    @rank_zero_only
    def finish(self, exit_code: int) -> None:
        """Close the run with the exit code that its process will have; W&B has `patience` seconds for it."""
        if self._aside is None:
            return
        limit = self.patience + HURRY if exit_code < 128 else min(self.patience, HURRY)
        ended = self._aside.close(self._run.finish, exit_code, limit=limit)
        if not ended and not self._aside.over:
            self._failed(TimeoutError(f"it did not end within {limit:.0f} s"))
        if not ended or self._aside.over:
            release()
        self._aside = None

    # What the thread does.

    def _go_on(self, step: int) -> None:
        self._run.go_on(numbers(self.folder / "metrics.csv"), step)

    def _log(self, row: dict[str, float], step: int | None) -> None:
        self._run.log(row, step)

    def _images(self, key: str, images: list[np.ndarray], step: int | None) -> None:
        import wandb

        self._run.log({key: [wandb.Image(image) for image in images]}, step)

    def _final(self, result: Result, step: int | None) -> None:
        import wandb

        self._results.append(result)
        pictures = {f"final/{name}": wandb.Image(still(picture)) for name, picture in result.pictures.items()}
        self._run.log({"final/table": figures(self._results), **pictures}, step)
        self._run.summary({f"final/{row.metric}": row.value for row in result.rows})

    def _study(self, result: Result) -> None:
        self._run.log(charts(result))
        self._run.summary({summary_name(result, row): row.value for row in result.rows})


def place(folder: Path) -> list[Any]:
    """logs/<job>/<names …> as [the logs folder, job, names …]; a folder elsewhere as [itself, "train", its name]."""
    path = Path(folder).absolute()
    if "logs" not in path.parts or path.parts[-1] == "logs":
        return [path, "train", path.name]
    at = len(path.parts) - path.parts[::-1].index("logs")
    job, *names = path.parts[at:]
    return [Path(*path.parts[:at]), job, *(names or [job])]


def asked(mode: str | None) -> str:
    """`mode`, or what the environment says in its place. Raises ValueError for what is none."""
    word = "logger.wandb.mode" if mode else "WANDB_MODE"
    mode = mode or os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # W&B's older words
    if mode not in ("online", "offline", "disabled"):
        raise ValueError(f"{word}={mode}: online, offline or disabled")
    return mode


def has_key() -> bool:
    """Whether a W&B key is at hand: in the environment or in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
