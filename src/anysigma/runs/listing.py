"""Runs as they lie on disk: which are there, how far they came, what they found."""

from collections.abc import Iterator
from pathlib import Path

from anysigma.machine.distributed import shown
from anysigma.report.results import read_results
from anysigma.runs.checkpoint import read

RUNS = Path("logs/train")


def refuse_if_not_empty(folder: Path) -> None:
    """Raises ValueError where the folder already holds a run."""
    if (folder / "checkpoints").exists() or (folder / "metrics.csv").exists():
        raise ValueError(f"resume=never, but {folder} already holds a run; run=NAME starts another")


def finished(folder: Path, max_steps: int) -> str | None:
    """The result of a run that has come to `max_steps`; None where it has not."""
    path = folder / "results.json"
    return result(folder, max_steps) if path.exists() and read_results(path)["step"] >= max_steps else None


def result(folder: Path, max_steps: int) -> str:
    """What a run found, where it lies, and the way to another or further."""
    results = read_results(folder / "results.json")
    step = results["step"]
    short = "" if step >= max_steps else f" of {max_steps}: trainer.max_time ended it, a larger one goes on from there"
    return "\n".join([
        f"\nfinished at step {step}{short}", *results["lines"],
        *map(shown, results["pictures"]), f"folder   {shown(folder)}",
        f"look     python evaluate.py checkpoint={name(folder)} study=all",
        "another  change one word (sampler=ddpm schedule=linear seed=1), or go further: trainer.max_steps=N",
    ])  # fmt: skip


def name(folder: Path) -> str:
    """What `checkpoint=` takes for this run: its name below logs/train, or its path."""
    folder = Path(shown(folder))
    return str(folder.relative_to(RUNS) if folder.is_relative_to(RUNS) else folder)


def listing(runs: Path = RUNS, *, names: bool = False) -> Iterator[str]:
    """One line a run that has a checkpoint: name, step, result; or the names alone."""
    for path in sorted(runs.glob("**/checkpoints/last.ckpt")):
        folder = path.parent.parent
        if names:
            yield str(folder.relative_to(runs))
            continue
        try:
            step = read(path)["step"]
        except ValueError as error:
            yield f"{folder.relative_to(runs)}  {error}"
            continue
        results = folder / "results.json"
        lines = read_results(results)["lines"] if results.exists() else ["not finished"]
        yield f"{folder.relative_to(runs)}  step {step}  {'; '.join(lines)}"
