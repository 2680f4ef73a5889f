"""How a training run ends: its exit code, and its loggers, that take the final figures before they close."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lightning.pytorch.loggers import Logger

from anysigma.report.results import Result


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


def finish(loggers: Iterable[Logger], exit_code: int) -> None:
    """Close every logger that is to be closed."""
    for logger in loggers:
        if hasattr(logger, "finish"):
            logger.finish(exit_code)
