"""Results as W&B shows them."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from anysigma.report.results import Result, Row


def charts(result: Result) -> dict[str, Any]:
    """A study's section: its pictures, its plots as charts, its tables and its figures."""
    import wandb

    found: dict[str, Any] = {f"{result.study}/{name}": wandb.Image(still(p)) for name, p in result.pictures.items()}
    for name, plot in result.plots.items():
        xs, ys = [list(c.x) for c in plot.curves], [list(c.y) for c in plot.curves]
        keys = [c.label for c in plot.curves]
        found[f"{result.study}/{name}"] = wandb.plot.line_series(xs, ys, keys, title=plot.caption, xname=plot.x)
    for number, table in enumerate(result.tables, 1):
        data = [list(row) for row in table.rows]
        found[f"{result.study}/table {number}"] = wandb.Table(columns=list(table.columns), data=data)
    if result.rows:
        found[f"{result.study}/figures"] = figures([result])
    return found


def figures(results: Iterable[Result]) -> Any:
    """Their rows as one W&B table."""
    import wandb

    names = ["metric", "value", "error", "n", "better", "beside"]
    data = [
        [result.study, *(getattr(row, name) for name in names), " ".join(f"{k}={v}" for k, v in row.params.items())]
        for result in results
        for row in result.rows
    ]
    return wandb.Table(columns=["study", *names, "setting"], data=data)


def summary_name(result: Result, row: Row) -> str:
    """<study>/<metric>/<setting>, the setting where the study has several."""
    setting = "/".join(str(value) for name, value in row.params.items() if name in ("sigma", "S", "tau"))
    return "/".join(filter(None, (result.study, row.metric, setting)))


def still(picture: np.ndarray) -> np.ndarray:
    """A picture, or an animation's last frame."""
    return picture if picture.ndim == 3 else picture[-1]
