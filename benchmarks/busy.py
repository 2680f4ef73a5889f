"""`python train.py` beside busy processes: does another program on the machine cost more than its share?"""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import harmonic_mean, median
from typing import Any

from benchmarks.child import ROOT
from benchmarks.course import Course

LATER = 5  # seconds after the load began
THREADS = {"as it comes": 0, "hardware.threads=1": 1}
QUIET = ("callbacks.grid.every", "callbacks.distance.every", "callbacks.held_out.every", "callbacks.last.every")


def measure(where: Course, quick: bool) -> dict[str, Any]:
    """Images/s with all threads and with one, beside k = 0, 1, 2 busy processes, in turn; `rounds` times."""
    loads, rounds, seconds = ((0, 1), 1, 2.0) if quick else ((0, 1, 2), where.rounds, 10.0)
    found: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds):
        for k in loads:
            for name, threads in THREADS.items():
                place = where.folder / f"busy-{number}-{k}-{threads}"
                found.setdefault((name, k), []).append(beside(k, threads, place, seconds, 1.0 if quick else LATER))
    rows = [[name, *(cell(found[name, k]) for k in loads)] for name in THREADS]
    one, whole = (list(THREADS)[i] for i in (1, 0))
    rows.append(["ratio of medians", *(f"{median(found[whole, k]) / median(found[one, k]):.2f}" for k in loads)])
    note = f"The digits' default run, images/s from {LATER} s after k busy processes began; wanted: a ratio of at least 0.8."
    values = {f"{name}, k = {k}": rates for (name, k), rates in found.items()}
    columns = ["threads", *(f"k = {k}" for k in loads)]
    return {"title": "training beside busy processes", "note": note, "columns": columns, "rows": rows, "values": values}


def cell(values: list[float]) -> str:
    """Median and spread."""
    return f"{median(values):.4g}" + (f" ({min(values):.4g} to {max(values):.4g})" if len(values) > 1 else "")


def beside(k: int, threads: int, place: Path, seconds: float, later: float) -> float:
    """Images/s of a run in `place`, from `later` seconds after k busy processes began, for so many seconds."""
    place.mkdir(parents=True)
    metrics = place / "logs/train/busy/metrics.csv"
    with running(train(threads), place), load(k, waits_for=metrics, folder=place):
        time.sleep(later)
        before = len(rates(metrics))
        time.sleep(seconds)
        return harmonic_mean(rates(metrics)[before:])


def train(threads: int) -> list[str]:
    """The command line: the default run, told to log often, to sample never and not to stop."""
    words = ["run=busy", "logger=csv", "~callbacks.progress", "trainer.max_steps=1000000", "trainer.log_every_n_steps=2"]
    words += [f"{word}=1000000" for word in QUIET]
    return [sys.executable, str(ROOT / "train.py"), *words, f"hardware.threads={threads}"]


@contextmanager
def running(command: list[str], place: Path) -> Iterator[None]:
    """A process in `place`, ended where the block ends."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    with open(place / "said", "w") as said:
        process = subprocess.Popen(
            command, cwd=place, stdout=said, stderr=said, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def load(k: int, waits_for: Path, folder: Path, patience: float = 120) -> Iterator[None]:
    """k processes that do nothing but compute, begun when the run has logged its first rates."""
    until = time.monotonic() + patience
    while len(rates(waits_for)) < 3:
        if time.monotonic() > until:
            raise RuntimeError(f"no training began: {(folder / 'said').read_text()[-2000:]}")
        time.sleep(0.2)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(k)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def rates(metrics: Path) -> list[float]:
    """train/images_per_s as far as it is written."""
    if not metrics.exists():
        return []
    with open(metrics) as file:
        rows = csv.DictReader(file)
        return [float(row["value"]) for row in rows if row["metric"] == "train/images_per_s" and row["value"]]
