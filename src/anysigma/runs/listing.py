"""Runs as they lie on disk: whose a folder is, how far it came, what was found."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anysigma.machine.distributed import shown
from anysigma.machine.writing import written
from anysigma.report.results import FORMAT, read_results
from anysigma.runs.checkpoint import LAST, PREVIOUS, newest, read
from anysigma.runs.identity import first_difference, said

GOES_ON = ("identity", "data_hash", "init_sha256", "optimizer_states", "lr_schedulers", "loops", "callbacks")
RUNS, EVALUATIONS = Path("logs/train"), Path("logs/evaluate")


def last(folder: Path) -> Path:
    """A run's newest checkpoint that is whole."""
    return newest(folder)


def refuse_if_not_empty(folder: Path) -> None:
    """Raises ValueError where the folder already holds a run."""
    if (folder / "checkpoints").exists() or (folder / "metrics.csv").exists():
        raise ValueError(f"resume=never, but {shown(folder)} already holds a run; run=NAME starts another")


def reached(folder: Path, identity: dict[str, Any]) -> int:
    """The step up to which the folder's run has come, 0 where there is none.

    Raises ValueError, with the first line that differs, where it is a run of another identity.
    """
    if not last(folder).exists():
        return 0
    checkpoint = read(last(folder))
    if lacking := [name for name in GOES_ON if name not in checkpoint]:
        raise ValueError(f"checkpoint {shown(last(folder))}: no training can go on from it (no {lacking[0]})")
    if found := first_difference(checkpoint["identity"], identity):
        key, theirs, ours = found[0].removesuffix("._target_"), said(found[1]), said(found[2])
        raise ValueError(f"{key}={ours}: {shown(folder)} holds a run with {key}={theirs}; run=NAME starts another")
    return checkpoint["step"]


def point(folder: Path, evaluation: Path, lines: Sequence[str], **facts: Any) -> None:
    """results.json of a run: where its final figures lie, and what a person is told; written aside and renamed."""
    content = {"format": FORMAT, **facts, "evaluation": shown(evaluation), "lines": list(lines)}
    with written(folder / "results.json") as aside:
        aside.write_text(json.dumps(content, indent=1))


def pointed(folder: Path) -> int | None:
    """The step of the final figures that a run's results.json points to; None where there are none."""
    try:
        return read_results(folder / "results.json").get("step")
    except (ValueError, OSError):
        return None


def measured(evaluation: Path, **made_of: Any) -> bool:
    """Whether an evaluation of just this (step, weights_sha256) lies there, whole."""
    path = evaluation / "results.json"
    if not path.exists() or not (evaluation / "report.html").exists():
        return False
    try:
        found = read_results(path)
    except ValueError:
        return False
    return all(found.get(name) == value for name, value in made_of.items())


def lines_of(evaluation: Path) -> list[str]:
    """What a person is told of an evaluation."""
    return [line for section in read_results(evaluation / "results.json")["sections"] for line in section["lines"]]


def result(folder: Path, *, again: bool) -> str:
    """Where a run lies and the way to another or further; `again`: its figures and pictures too, as they were found."""
    found = read_results(folder / "results.json")
    figures = [*found["lines"], *map(shown, sorted(Path(found["evaluation"]).glob("grid.png"))),
               f"figures  {found['evaluation']}"] if again else []  # fmt: skip
    return "\n".join([
        f"\nfinished at step {found['step']}", *figures, f"run      {shown(folder)}",
        f"look     python evaluate.py checkpoint={name(folder)} study=all",
        "another  change one word (sampler=ddpm schedule=linear seed=1), or go further: trainer.max_steps=N",
    ])  # fmt: skip


def name(folder: Path) -> str:
    """What `checkpoint=` takes for this run: its name below logs/train, or its path."""
    folder = Path(shown(folder))
    return str(folder.relative_to(RUNS) if folder.is_relative_to(RUNS) else folder)


def listing(runs: Path = RUNS, *, names: bool = False) -> Iterator[str]:
    """One line a run that has a checkpoint: name, step, result; or the names alone."""
    for place in sorted({path.parent for name in (LAST, PREVIOUS) for path in runs.glob(f"**/checkpoints/{name}")}):
        folder, path = place.parent, place / LAST
        path = path if path.exists() else place / PREVIOUS
        if names:
            yield str(folder.relative_to(runs))
            continue
        results = folder / "results.json"
        try:
            step = read(path, sealed=False)["step"]
            lines = read_results(results).get("lines", ()) if results.exists() else ["not finished"]
        except ValueError as error:
            yield f"{folder.relative_to(runs)}  {error}"
            continue
        yield f"{folder.relative_to(runs)}  step {step}  {'; '.join(lines)}"
