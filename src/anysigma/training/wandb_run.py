"""A run at W&B, as the one thread that speaks with it holds it."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anysigma.machine.distributed import shown
from anysigma.machine.secrets import redacted
from anysigma.training.wandb_files import last_step

STEP = "trainer/global_step"
# Seconds in which W&B has to answer a start; the run has begun meanwhile.
ANSWER = 20.0
# Whose lowest value stands in the summary, not the last.
LOWEST = ("distance/*", "held_out/*")


class WandbRun:
    """One start of a run at W&B: rows by step, each step once, also where an earlier start has logged it.

    W&B's own step is the training step. What is known there (by the server's word, offline by the files in `folder`) is not
    logged again: a run that goes on from a checkpoint repeats its steps. A row waits for the next step's, so that a kill
    leaves whole rows or none.
    """

    def __init__(self, folder: Path, patience: float, **init: Any):
        self.folder, self.patience, self.init, self.known = folder, patience, init, -1
        self._run: Any = None
        self._pending: tuple[int, dict[str, Any]] = (-1, {})

    def open(self) -> None:
        """Online where it is asked for and W&B answers; else offline, said in one line. Raises what W&B raises."""
        if self.init["mode"] == "online":
            try:
                self._begin()
                self.known = self._run.starting_step - 1
            except Exception as error:
                print(f"W&B cannot be reached ({reason(error)}): this run is kept offline", flush=True)
                self.init["mode"] = "offline"
                release()  # the service holds the id until it has given up
        if self._run is None:
            self.known = last_step(self.folder, self.init["id"])
            self._begin()
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP, step_sync=True)
        for names in LOWEST:
            self._run.define_metric(names, step_metric=STEP, summary="min")

    def _begin(self) -> None:
        import wandb

        settings = wandb.Settings(
            console="off", init_timeout=ANSWER, silent=True, x_disable_stats=self.init["mode"] != "online",
            finish_timeout=self.patience, finish_timeout_raises=True,
        )  # fmt: skip
        # A run of its own, whatever else this process has open.
        self._run = wandb.init(
            dir=str(self.folder), resume="allow", reinit="create_new", settings=settings, **self.init
        )  # fmt: skip

    def go_on(self, rows: Iterable[tuple[int, str, float]], step: int) -> None:
        """Log of the local record (step, metric, value) what W&B lacks up to `step`; what is above will come again."""
        for at, name, value in rows:
            if at <= step:
                self.log({name: value}, at)

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        """A part of a step's row; without `step` a row at once."""
        if step is None:
            self._run.log(row)
            return
        # Final figures that were measured again: W&B adds nothing to a row that it has.
        late = step == self.known and all(name.startswith("final/") for name in row)
        at = step + 1 if late else step
        if row and at > self.known:
            if at != self._pending[0]:
                self._flush()
                self._pending = (at, {STEP: step})
            self._pending[1].update(row)

    def _flush(self) -> None:
        step, row = self._pending
        self._pending = (-1, {})
        if row:
            self._run.log(row, step=step, commit=True)
            self.known = step

    def summary(self, values: dict[str, Any]) -> None:
        """Figures of the whole run."""
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        """Close it with the exit code of the process; raises TimeoutError where W&B did not get all in time."""
        if self._run is None:
            return
        try:
            self._flush()
        finally:
            try:
                self._run.finish(exit_code=exit_code)
            except TimeoutError:
                left = shown(Path(self._run.settings.sync_dir))
                raise TimeoutError(f"{self.patience:g} s were too short, `wandb sync {left}` sends the rest") from None


def reason(error: BaseException) -> str:
    """The first line of an error, or its kind; without secrets: a server's address may hold a password."""
    lines = str(error).strip().splitlines()
    return redacted(lines[0]) if lines else type(error).__name__


def release() -> None:
    """End W&B's service where it does not answer any more: its handler at exit would wait for it, however long."""
    os.environ.pop("WANDB_SERVICE", None)  # how a later start in this process would find it
    with contextlib.suppress(Exception):  # its inside may be another in another version: then there is nothing to do
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()
        wandb_setup.singleton()._connection = None
