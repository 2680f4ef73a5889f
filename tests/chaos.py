"""`make chaos`: runs killed with SIGKILL over and over, at random in every phase, and held against one that never was.

    python tests/chaos.py --kills 50 --seed 0

Each kill is drawn: a phase, which of its occurrences, a moment within it. What was hit is printed as it was found, not
as it was drawn. The killed run's files must in the end be those of the uncut one: weights, averages, optimiser, metrics,
pictures, figures, bit for bit.
"""

import argparse
import csv
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
WORDS = (
    "debug=true", "run=chaos", "logger=csv", "~callbacks.progress", "model.channels=8", "model.multipliers=[1]",
    "hardware.threads=1", "trainer.max_steps=40", "trainer.log_every_n_steps=5", "callbacks.last.every=3",
    "callbacks.held_out.every=4", "callbacks.grid.every=8", "callbacks.distance.every=6", "study.n=70", "study.splits=4",
)  # fmt: skip
KINDS = {"1 process": (), "2 micro-steps": ("trainer.accumulate_grad_batches=2",), "2 processes": ("hardware.devices=2",)}
TIMED = ("train/images_per_s", "train/data_wait", "train/memory_gib")  # metrics of the machine, not of the run

# Phase → where it happens: module, class or None, function.
TRAINING = {
    "data": ("anysigma.data.datamodule", "ImageDataModule", "setup"),
    "forward": ("anysigma.training.module", "DiffusionModule", "training_step"),
    "optimiser": ("anysigma.training.module", "DiffusionModule", "optimizer_step"),
    "average": ("anysigma.training.ema", "EMA", "update"),
    "held-out": ("anysigma.training.callbacks.held_out", "HeldOut", "act"),
    "grid": ("anysigma.training.callbacks.grid", "Grid", "act"),
    "distance": ("anysigma.training.callbacks.distance", "Distance", "act"),
    "metrics.csv": ("anysigma.training.loggers", "MetricsCSV", "log_metrics"),
    "save": ("anysigma.runs.checkpoint", None, "write"),
    "archive": ("anysigma.runs.seal", None, "save"),
    "renames": ("anysigma.runs.checkpoint", None, "rename_copy"),
    "best": ("anysigma.training.callbacks.best", "Best", "on_train_batch_end"),
    "going on": ("anysigma.training.checkpoint_io", "AtomicCheckpointIO", "load_checkpoint"),
}
FINAL = {
    "final images": ("anysigma.studies.quality", None, "generated"),
    "a block": ("anysigma.studies.generated", None, "_write"),
    "final figures": ("anysigma.evaluation.record", "Record", "add"),
    "final rows": ("anysigma.training.ending", "Final", "log_study"),
    "page": ("anysigma.evaluation.record", "Record", "close"),
    "pointer": ("anysigma.evaluation.final", None, "point"),
}
PHASES = TRAINING | FINAL


@dataclass(frozen=True)
class Kill:
    """In the `number`-th occurrence of a phase in this process, `after` so many seconds."""

    phase: str
    number: int
    after: float


class Watched:
    """The child's side: notes the phases it is in, and ends itself and all it started when the kill's moment comes."""

    def __init__(self, note: Path, kill: Kill | None):
        self.note, self.kill = note, kill
        self.inside, self.step, self.seen = ["start"], 0, Counter()
        self.lengths: dict[str, list[float]] = {}

    def watch(self, phase: str) -> None:
        """Every call of the phase's function is noted from now on."""
        module, owner, name = PHASES[phase]
        place = __import__(module, fromlist=["_"])
        place = getattr(place, owner) if owner else place
        setattr(place, name, self._noted(phase, getattr(place, name)))

    def _noted(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            self.seen[phase] += 1
            if self.kill is not None and (phase, self.seen[phase]) == (self.kill.phase, self.kill.number):
                threading.Timer(self.kill.after, self._end).start() if self.kill.after else self._end()
            self.step = getattr(args[0], "global_step", self.step) if args else self.step
            self.inside.append(phase)
            begun = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.inside.pop()
                self.lengths.setdefault(phase, []).append(time.perf_counter() - begun)

        return noted

    def _end(self) -> None:
        self.note.write_text(f"step {self.step}, in {' > '.join(self.inside)}")
        os.killpg(0, signal.SIGKILL)


def child(note: str, kill: str, words: Sequence[str]) -> None:
    """train.py with these words, watched; the lengths of all phases are noted where it is not killed."""
    watched = Watched(Path(note), Kill(**json.loads(kill)) if json.loads(kill) else None)
    for phase in PHASES:
        watched.watch(phase)
    sys.argv = [str(ROOT / "train.py"), *words]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        watched.note.write_text(json.dumps(watched.lengths))


def started(place: Path, words: Sequence[str], kill: Kill | None) -> tuple[int, str]:
    """(exit code, what it noted) of one start of the run in `place`."""
    note = place / "note"
    note.unlink(missing_ok=True)
    said = json.dumps(None if kill is None else kill.__dict__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANYSIGMA_HARDWARE": "{}"}
    with open(place / "said", "a") as out:
        code = subprocess.run(
            [sys.executable, __file__, "child", str(note), said, *words], cwd=place, env=environment,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        ).returncode  # fmt: skip
    return code, note.read_text() if note.exists() else ""


def uncut(place: Path, words: Sequence[str]) -> dict[str, list[float]]:
    """The run that is never killed; the lengths of its phases."""
    code, said = started(place, words, None)
    if code:
        raise RuntimeError(f"the uncut run ended with {code}: {(place / 'said').read_text()[-2000:]}")
    return json.loads(said)


def drawn(draw: random.Random, lengths: dict[str, list[float]], phases: Sequence[str]) -> Kill:
    """A phase, one of its first occurrences in a process, a moment within it."""
    phase = draw.choice([p for p in phases if p in lengths or p == "going on"])
    number = draw.randint(1, 1 if phase in ("data", "going on", *FINAL) else max(1, min(8, len(lengths[phase]) // 5)))
    return Kill(phase, number, draw.random() * np.median(lengths.get(phase, [0.01])).item())


def killed(place: Path, words: Sequence[str], kills: Sequence[Kill], say: Callable[[str], None]) -> int:
    """The run started until it is done, killed on its way as drawn; how often it was."""
    hit = 0
    for kill in kills:
        code, said = started(place, words, kill)
        if code == 0:
            break
        if code != -signal.SIGKILL:
            raise RuntimeError(f"ended with {code}, not by the kill: {(place / 'said').read_text()[-3000:]}")
        hit += 1
        say(f"  {said}")
    code, _ = started(place, words, None)
    if code:
        raise RuntimeError(f"could not go on: {(place / 'said').read_text()[-3000:]}")
    return hit


def differences(place: Path, other: Path) -> Iterator[str]:
    """Where the run of one place is not that of another, bit for bit."""
    run, theirs = place / "logs/train/chaos", other / "logs/train/chaos"
    for name in ("last", "best"):
        one, two = (torch.load(f / f"checkpoints/{name}.ckpt", weights_only=True) for f in (run, theirs))
        yield from unequal(one, two, name)
    yield from unequal(rows(run), rows(theirs), "metrics.csv")
    figures, expected = (sorted(p.rglob("logs/evaluate/chaos/*/results.json")) for p in (place, other))
    yield from unequal(*([json.loads(f.read_text())["rows"] for f in found] for found in (figures, expected)), "figures")
    for folder in ("logs/train/chaos/samples", "logs/evaluate"):
        one, two = ({p.relative_to(f): p.read_bytes() for p in (f / folder).rglob("*.png")} for f in (place, other))
        yield from unequal(one, two, folder)


def rows(run: Path) -> list[tuple[str, str, str]]:
    """What metrics.csv says, but for times."""
    with open(run / "metrics.csv", newline="") as file:
        return [(r["step"], r["metric"], r["value"]) for r in csv.DictReader(file) if r["metric"] not in TIMED]


def unequal(one: Any, two: Any, where: str) -> Iterator[str]:
    """The places in which two nested values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in {**one, **two}:
            yield from unequal(one.get(key), two.get(key), f"{where}.{key}")
    elif isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if not torch.equal(one, two):
            yield f"{where}: {(one != two).sum()} of {one.numel()} values"
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, pair in enumerate(zip(one, two, strict=True)):
            yield from unequal(*pair, f"{where}[{number}]")
    elif one != two:
        yield f"{where}: {str(one)[:200]}, uncut {str(two)[:200]}"


def chaos(
    kills: int, seed: int, folder: Path, kinds: Sequence[str] = tuple(KINDS), say: Callable[[str], None] = print
) -> int:
    """Runs of these kinds in turn until there were so many kills; how many runs came out otherwise than the uncut one."""
    draw, hit, wrong = random.Random(seed), 0, 0
    lengths = {kind: uncut(made(folder / kind / "uncut"), (*WORDS, *KINDS[kind])) for kind in kinds}
    number = 0
    while hit < kills:
        kind = kinds[number % len(kinds)]
        place, number = made(folder / kind / str(number)), number + 1
        most = min(8, kills - hit)
        plan = [drawn(draw, lengths[kind], list(TRAINING if i < 0.7 * most else FINAL)) for i in range(most)]
        say(f"{kind}:")
        hit += killed(place, (*WORDS, *KINDS[kind]), plan, say)
        found = list(differences(place, folder / kind / "uncut"))
        wrong += bool(found)
        say("\n".join(found) or "  as the uncut run, bit for bit")
    say(f"{hit} kills, {number} runs, {wrong} of them otherwise than the uncut one")
    return wrong


def made(place: Path) -> Path:
    """A new folder."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def main() -> int:
    """The command."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="anysigma-chaos-") as folder:
        return min(1, chaos(given.kills, given.seed, Path(folder), given.kinds))


if __name__ == "__main__":
    sys.exit(child(*sys.argv[2:4], sys.argv[4:]) if sys.argv[1:2] == ["child"] else main())
