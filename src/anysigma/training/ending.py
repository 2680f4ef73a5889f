"""How a training run ends: its exit code, and its loggers, that take the final figures before they close."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from lightning.pytorch.loggers import Logger

from anysigma.machine.meeting import agreed
from anysigma.machine.slurm import requeue
from anysigma.report.results import Result
from anysigma.runs.checkpoint import read
from anysigma.runs.listing import last, pointed


class Outcome(NamedTuple):
    """How a start of a run ended: `code` for the process, `done` where it came to its last step, loggers still open then."""

    code: int
    done: bool
    loggers: list[Logger]


class Final:
    """A training's own loggers where an evaluation puts its figures: they go to `final/*` at the run's last step."""

    def __init__(self, loggers: Sequence[Logger], step: int):
        self.loggers, self.step, self._said = loggers, step, set()

    def log_study(self, result: Result) -> None:
        """The first row of each metric as a number; pictures and all rows where a logger takes them."""
        found = {f"final/{row.metric}": row.value for row in reversed(result.rows) if row.value is not None}
        new = {name: value for name, value in reversed(found.items()) if name not in self._said}
        self._said |= new.keys()
        for logger in self.loggers:
            logger.log_metrics(new, step=self.step)
            if hasattr(logger, "log_final"):
                logger.log_final(result, step=self.step)

    def finish(self, exit_code: int) -> None:
        """Close them, with the exit code that the process will have."""
        finish(self.loggers, exit_code)


Loggers = Mapping[str, Callable[..., Any]]


def loggers_of(folder: Path, loggers: Loggers) -> Loggers:
    """The loggers of a run that is at its last step: its own again, where its final figures were cut; else as they are.

    What was logged of them is cut back: they are measured to their end now.
    """
    checkpoint = read(last(folder))
    if pointed(folder) == checkpoint["step"]:
        return loggers  # measured: another study's figures go where that is recorded
    own = [logger(folder=folder, config=checkpoint["config"]) for logger in loggers.values()]
    for logger in own:
        if hasattr(logger, "cut_back"):
            logger.cut_back(checkpoint["step"], final=False)
    final = Final(own, checkpoint["step"])
    return {"final": lambda **_: final}


def finish(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close every logger that is to be closed."""
    for logger in loggers:
        if hasattr(logger, "finish"):
            logger.finish(exit_code)


def leave(code: int) -> NoReturn:
    """End the process with `code`, at SIGUSR1 under Slurm with the job in the queue again. Raises SystemExit.

    All ranks leave when rank 0 has done what it alone does: launchers that see one gone end the others.
    """
    requeue(code)
    agreed(True)
    sys.exit(code)
