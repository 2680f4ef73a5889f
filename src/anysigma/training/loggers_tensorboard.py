"""TensorBoard beside metrics.csv; tensorboard itself is an extra that `logger=tensorboard` asks for."""

import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from anysigma.machine.distributed import say, shown
from anysigma.report.plots import drawn

# At import, which is when a config is checked: a run must not find out after its network and its data were built.
if importlib.util.find_spec("tensorboard") is None:
    raise ValueError("logger=tensorboard: tensorboard is not installed; pip install tensorboard, or choose logger=csv")


def beside(function: Callable[..., None]) -> Callable[..., None]:
    """A logger's call whose error costs one line, once, and then the logger: the run goes on, metrics.csv is the truth."""

    @functools.wraps(function)
    def guarded(self: Any, *args: Any, **options: Any) -> None:
        if self.lost:
            return
        try:
            function(self, *args, **options)
        except Exception as error:
            self.lost = True
            why = error.__cause__ or error  # Lightning wraps whatever it is
            say(f"TensorBoard is left alone: {str(why) or type(why).__name__}; figures are in {shown(self.folder)}")

    return guarded


class TensorBoard(TensorBoardLogger):
    """Numbers, pictures and final results as event files in the run's folder: `tensorboard --logdir logs/train`.

    On resume TensorBoard hides what was logged after the checkpoint's step. A disk that takes no more costs the event file,
    said in one line, not the run.
    """

    def __init__(self, folder: Path, config: dict[str, Any]):
        super().__init__(save_dir=folder, name="tensorboard", version="", default_hp_metric=False)
        self.folder, self.lost = Path(folder), False
        self._config = {name: value for name, value in config.items() if name != "job"}  # the same nodes once more

    @rank_zero_only
    @beside
    def cut_back(self, step: int, final: bool = True) -> None:
        """Hide what was logged after `step` (a new run: all there is) and open the file; a new run's says its config.

        `final` False: figures of the last step are measured again, and stand there twice, alike.
        """
        self._kwargs["purge_step"] = step + 1 if step else 0
        if step == 0:
            lines = json.dumps(self._config, indent=1, default=str)
            self.experiment.add_text("config", f"```\n{lines}\n```", 0)

    @rank_zero_only
    @beside
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Numbers at a step."""
        super().log_metrics(metrics, step)

    @rank_zero_only
    @beside
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None, **_: Any) -> None:
        """Pictures uint8 `[H, W, 3]`."""
        for i, image in enumerate(images):
            self.experiment.add_image(f"{key}/{i}" if i else key, image, step, dataformats="HWC")

    @rank_zero_only
    @beside
    def log_final(self, result: Any, step: int | None = None) -> None:
        """The final pictures (of an animation the last), the plots, and the rows as a table."""
        self._log("final", result, step)

    @rank_zero_only
    @beside
    def log_study(self, result: Any) -> None:
        """The same of an evaluation's study, below its name."""
        self._log(result.study, result, 0)

    def _log(self, place: str, result: Any, step: int | None) -> None:
        stills = {name: picture if picture.ndim == 3 else picture[-1] for name, picture in result.pictures.items()}
        for name, picture in {**stills, **{name: drawn(plot) for name, plot in result.plots.items()}}.items():
            self.log_image(f"{place}/{name}", [picture], step)
        names = ["metric", "value", "error", "n", "beside"]
        rows = [[result.study, *(getattr(row, name) for name in names)] for row in result.rows]
        cells = [["study", *names], ["---"] * (1 + len(names)), *rows]
        self.experiment.add_text(f"{place}/table", "\n".join(f"| {' | '.join(map(str, row))} |" for row in cells), step)

    @rank_zero_only
    @beside
    def save(self) -> None:
        """Flush; Lightning's hparams.yaml would be empty."""
        if self._experiment is not None:
            self._experiment.flush()

    @rank_zero_only
    @beside
    def finalize(self, status: str) -> None:
        """Training is over, the run is not: a file opened anew would hide the whole of what this one holds."""
        self.save()

    @rank_zero_only
    @beside
    def finish(self, exit_code: int) -> None:
        """Close the file."""
        if self._experiment is not None:
            self._experiment.close()
