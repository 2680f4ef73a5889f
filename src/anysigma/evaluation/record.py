"""What an evaluation found, as files, for loggers and for a person."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anysigma.machine.distributed import say, shown
from anysigma.report.page import write_report
from anysigma.report.results import Result, read_results, save_arrays, save_pictures, write_results
from anysigma.runs.lock import hold


class Record:
    """Results in `folder`, one after the other, so that a cut evaluation leaves what it had; `facts`: how it was made."""

    def __init__(self, folder: Path, loggers: Mapping[str, Callable[..., Any]], facts: dict[str, Any]):
        self.folder, self.facts, self._loggers = folder, facts, loggers
        self._results: list[Result] = []
        self._open: list[Any] | None = None

    def begin(self, **made_of: Any) -> None:
        """What the figures are made of (step, weights_sha256, precision). Those of another that lie here are put aside.

        Raises ValueError where another process measures here.
        """
        self.facts |= made_of
        self.hold()
        path = self.folder / "results.json"
        if not path.exists():
            return
        try:
            before = read_results(path)
        except ValueError:  # another version's
            before = {"step": "unknown"}
        if any(before.get(name) != value for name, value in made_of.items()):
            for file in (path, self.folder / "report.html", *self.folder.glob("*.png"), *self.folder.glob("*.npz")):
                if file.exists() and not file.name.startswith("step-"):
                    file.rename(file.with_name(f"step-{before.get('step', 'unknown')}-{file.name}"))

    def hold(self) -> None:
        """Raises ValueError where another process measures here."""
        hold(self.folder, "the same command shows its figures when they are there")

    def add(self, result: Result) -> None:
        """Pictures, results.json, a person's lines."""
        self.hold()
        self._results.append(result)
        paths = save_pictures(result, self.folder)
        save_arrays(result, self.folder)
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

    def fail(self) -> None:
        """Loggers end with what they have: the study failed."""
        for logger in self._started():
            logger.finish(1)

    def _started(self) -> list[Any]:
        """The loggers that take studies, started with the first result."""
        if self._open is None:
            made = [logger(folder=self.folder, config=self.facts["config"]) for logger in self._loggers.values()]
            self._open = [logger for logger in made if hasattr(logger, "log_study")]
        return self._open
