"""A run's final figures: measured when training has ended, as evaluate.py measures them."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anysigma.compose.cli import USER_ERRORS, one_line, said_by_us
from anysigma.compose.config import build
from anysigma.evaluation.record import Record
from anysigma.evaluation.stored import opened
from anysigma.machine.choice import of_sampling
from anysigma.machine.distributed import is_first, shown
from anysigma.machine.meeting import agreed
from anysigma.runs.checkpoint import read, weights_digest, weights_of
from anysigma.runs.delivery import delivered
from anysigma.runs.identity import asked_precision, evaluation_name
from anysigma.runs.listing import EVALUATIONS, last, lines_of, measured, name, point, result

Loggers = Mapping[str, Callable[..., Any]]


def final_figures(folder: Path, node: dict[str, Any], word: str, loggers: Loggers, facts: dict[str, Any]) -> int:
    """Measure the run in `folder` with its config's study and sampler, unless it was; returns the exit code.

    `word`: the study's; `facts`: command and versions. What was measured before is not measured again; another sampler or
    study of a finished run is: train once, sample with any σ. A study that fails costs the figures, not the run: code 1.
    """
    checkpoint = read(delivered(last(folder)))
    made_of = {"step": checkpoint["step"], "weights_sha256": weights_digest(weights_of(checkpoint))}
    own = node["features"] == checkpoint["config"]["features"]
    sampled = of_sampling(checkpoint["config"].get("hardware"))
    place = Path.cwd() / EVALUATIONS / evaluation_name(
        name(folder), word, study_node=node["study"], sampler=node["sampler"],
        features=None if own else node["features"], which="last", weights="ema", data={},
        precision=asked_precision(node["hardware"], sampled.get("precision")),
    )  # fmt: skip
    there = agreed(measured(place, **made_of, lacks_features=False))
    if there:  # shown again, if it is still the run of these images
        data = build(node["data"])
        data.setup()
        data.hold_to(checkpoint["data_hash"])
    else:
        record = Record(place, loggers, {**facts, "config": {k: v for k, v in node.items() if k != "job"}})
        try:
            measure(folder, node, record)
        except BaseException as error:
            record.fail()
            traced = os.environ.get("ANYSIGMA_TRACE") == "1" or not isinstance(error, USER_ERRORS)
            if traced or not said_by_us(error):
                raise
            print(f"error: trained and saved, but not measured: {one_line(error, None)}; the same command tries again",
                  file=sys.stderr)  # fmt: skip
            return 1
    if is_first():
        point(folder, place, lines_of(place), **made_of)
        print(result(folder, again=there))
    return 0


def measure(folder: Path, node: dict[str, Any], record: Record) -> None:
    """The study of a run's config on its last checkpoint."""
    sampler = build(node["sampler"])
    path = Path(shown(last(folder)))
    evaluation = opened(path, sampler, build(node["hardware"]), features=node["features"], data=node["data"])
    evaluation.run(build(node["study"]), sampler, record, without_features=True)
