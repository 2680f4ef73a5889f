"""What an evaluation found, as files, for loggers and for a person."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anysigma.machine.distributed import say, shown
from anysigma.report.page import write_report
from anysigma.report.results import Result, save_pictures, write_results


class Record:
    """Results in `folder`, one after the other, so that a cut evaluation leaves what it had; `facts`: how it was made."""

    def __init__(self, folder: Path, loggers: Mapping[str, Callable[..., Any]], facts: dict[str, Any]):
        self.folder, self.facts, self._loggers = folder, facts, loggers
        self._results: list[Result] = []
        self._open: list[Any] | None = None

    def add(self, result: Result) -> None:
        """Pictures, results.json, a person's lines."""
        self._results.append(result)
        paths = save_pictures(result, self.folder)
        write_results(self.folder / "results.json", self._results, **self.facts)
        for logger in self._started():
            logger.log_study(result)
        tables = (f"\n{table.text()}\n" for table in result.tables)
        say("\n".join([*result.lines, *tables, *map(shown, paths)]))

    def close(self) -> None:
        """The page over all results, and the ways to it."""
        for logger in self._started():
            logger.finish(0)
        say(f"report   {shown(write_report(self.folder))}\nfolder   {shown(self.folder)}")

    def _started(self) -> list[Any]:
        """The loggers that take studies, started with the first result."""
        if self._open is None:
            made = [logger(folder=self.folder, config=self.facts["config"]) for logger in self._loggers.values()]
            self._open = [logger for logger in made if hasattr(logger, "log_study")]
        return self._open
