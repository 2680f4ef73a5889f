"""`make bench`: every part in turn, into benchmarks/results/<machine>.json and docs/performance.md.

`--only step-35.7M-16 loop` measures some and leaves the others as they were; `--quick` sees that all of it runs and
keeps nothing; `--device cuda` is `make bench-gpu`.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from anysigma.machine.threads import cores
from benchmarks import busy, kept, parity, table_overhead, tables, time_to_quality, watched
from benchmarks.child import PEERS
from benchmarks.course import Course, course, run
from benchmarks.races import races
from benchmarks.task import Task

Part = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    given = arguments().parse_args(words)
    if given.tables:
        tables.update()
        return 0
    file = Path(given.results) if given.results else kept.path(given.device)
    rounds, seconds = (2, 0.2) if given.quick else (given.pairs, given.seconds)
    setting = dict(rounds=rounds, seconds=seconds, device=given.device, threads=given.threads, peers=Path(given.peers))
    with course(**setting) as where:
        if not where.peers.exists():
            print(f"no peers at {where.peers}: ours alone; `make bench` installs them")
        for key, part in measured(where, given):
            print(f"\n{tables.part_table({**part, 'machine': {'date': 'just now'}})}\n", flush=True)
            if not given.quick:
                kept.add(file, key, part, given.device)
    if not given.quick and not given.results:
        tables.update()
    return 0


def arguments() -> argparse.ArgumentParser:
    """What can be said."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="python -m benchmarks.run")
    words.add_argument("--only", nargs="*", help=f"of {', '.join([*races(), *OTHERS, *races('cuda')])}")
    words.add_argument("--pairs", type=int, default=10, help="turns of each contestant")
    words.add_argument("--seconds", type=float, default=4.0, help="about how long a turn is; at least one step")
    words.add_argument("--quick", action="store_true", help="small work and few turns: does all of it run? Keeps nothing")
    words.add_argument("--quality", action="store_true", help="time to quality on digits too: about an hour")
    words.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    words.add_argument("--gpu-parts", action="store_true", help="what bench-gpu measures, on whatever device")
    words.add_argument("--threads", type=int, default=cores(), help="of the CPU")
    words.add_argument("--peers", default=str(PEERS), help="the Python that has the peers")
    words.add_argument("--results", help="another file to keep the figures in; docs/performance.md then stays as it is")
    words.add_argument("--tables", action="store_true", help="measure nothing: make docs/performance.md from what is kept")
    return words


def measured(where: Course, given: argparse.Namespace) -> Iterator[tuple[str, Part]]:
    """(key, part) of what was asked for. Raises ValueError for a part that there is not."""
    known = races(where.device)
    gpu = given.gpu_parts or where.device == "cuda"
    others = {name: part for name, part in OTHERS.items() if (name in GPU) == gpu}
    if not given.quality:
        others = {name: part for name, part in others.items() if name != "quality" or "quality" in (given.only or ())}
    if gpu:
        known = {key: race for key, race in known.items() if key not in ("digits", "loop")}
    if unknown := set(given.only or ()) - {*known, *others}:
        raise ValueError(f"--only {min(unknown)}: there are {', '.join([*known, *others])}")
    done: dict[str, Part] = {}
    for key in given.only or [*known, *others]:
        print(f"{key} …", flush=True)
        if key in known:
            done[key] = run(where, known[key].quick() if given.quick else known[key])
            yield key, done[key]
        else:
            yield key, others[key](where, given.quick, done)


def task(where: Course, quick: bool) -> Task:
    """The 35.7 M network as it trains in bf16; quick: a small one."""
    network, batch = ("tiny", 4) if quick else ("35.7 M", 128)
    alike = dict(device=where.device, threads=where.threads, folder=str(where.folder / "watched"))
    fast = dict(precision="bf16", memory_format="channels_last", S=3 if quick else 50)
    return Task(network, batch, images=where.images(network), **alike, **fast)


def same_numbers(where: Course, quick: bool, done: dict[str, Part]) -> Part:
    """Parity."""
    return parity.measure("tiny" if quick else "35.7 M", where.device, 2 if quick else 16)


def utilisation(where: Course, quick: bool, done: dict[str, Part]) -> Part:
    """Of the training steps that were raced in this call."""
    return watched.utilisation({key: part for key, part in done.items() if key.startswith("step-")}, where.device)


OTHERS: dict[str, Callable[[Course, bool, dict[str, Part]], Part]] = {
    "study-table": lambda where, quick, done: table_overhead.measure(where, quick),
    "busy": lambda where, quick, done: busy.measure(where, quick),
    "quality": lambda where, quick, done: time_to_quality.measure(where, quick),
    "parity": same_numbers,
    "utilisation": utilisation,
    "waits": lambda where, quick, done: watched.waits(task(where, quick)),
    "operators": lambda where, quick, done: watched.operators(task(where, quick)),
}
GPU = ("parity", "utilisation", "waits", "operators")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as wrong:
        sys.exit(f"error: {wrong}")
