"""A race is run: children are made, formats tried, turns taken, times told."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from anysigma.machine.threads import cores
from benchmarks.child import PEERS, Child
from benchmarks.pairs import in_turn, ratio, spread, turn_steps
from benchmarks.races import Entry, Race
from benchmarks.task import NETWORKS, OURS, Task

COUNT = 1024  # random images


@dataclass(frozen=True)
class Course:
    """Where and how long: `folder` for what contestants write, `rounds` of one turn each, of about `seconds`.

    `threads` are fixed: ours would follow the free cores, and see the other's turn as a busy machine.
    """

    folder: Path
    rounds: int = 10
    seconds: float = 4.0
    device: str = "cpu"
    threads: int = cores()
    peers: Path = PEERS

    def images(self, network: str) -> str:
        """A file of images of the network's shape: the digits, else random ones, always the same."""
        shape = (1, 8, 8) if network == OURS else tuple(NETWORKS[network].shape)
        path = self.folder / f"images-{'x'.join(map(str, shape))}.npy"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            np.save(path, made(shape))
        return str(path)

    def child(self, race: Race, entry: Entry, memory_format: str) -> Child:
        """The contestant's process, ready."""
        where = self.folder / race.key / f"{entry.name}-{memory_format}".replace(" ", "_")
        task = Task(
            race.network, race.batch, images=self.images(race.network), folder=str(where), device=self.device,
            precision=entry.precision, memory_format=memory_format, S=race.S, threads=self.threads, **entry.more,
        )  # fmt: skip
        return Child(entry.who, task, sys.executable if entry.ours else self.peers)

    def present(self, race: Race) -> Race:
        """The race without the peers that are not installed here."""
        there = tuple(entry for entry in race.entries if entry.ours or self.peers.exists())
        names = {entry.name for entry in there}
        return replace(race, entries=there, wanted=tuple(one for one in race.wanted if {one[0], one[1]} <= names))


def made(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 `[N, C, H, W]`."""
    if shape == (1, 8, 8):
        from anysigma.data.digits import Digits

        return Digits().train.numpy()
    return np.random.default_rng(0).integers(0, 256, (COUNT, *shape), dtype=np.uint8)


@contextmanager
def course(**settings: Any) -> Iterator[Course]:
    """A course in a folder that goes when all is over."""
    with tempfile.TemporaryDirectory(prefix="anysigma-bench-") as folder:
        yield Course(Path(folder), **settings)


def chosen(where: Course, race: Race, entry: Entry) -> tuple[Child, dict[str, float]]:
    """The contestant in its faster memory format, warmed up, and the images/s of those that were tried."""
    children = {memory: where.child(race, entry, memory) for memory in entry.formats}
    warm = {memory: warmed(child) for memory, child in children.items()}
    if len(children) == 1:
        return next(iter(children.values())), {}
    steps = turn_steps(race.batch / max(warm.values()), where.seconds / 2)
    tried = in_turn({memory: lambda c=child: c.rate(steps=steps)[0] for memory, child in children.items()}, 2)
    rates = {memory: median(values) for memory, values in tried.items()}
    best = max(rates, key=rates.get)
    for memory, child in children.items():
        if memory != best:
            child.close()
    return children[best], rates


def warmed(child: Child) -> float:
    """Images/s of the second step: the first may allocate, compile, choose kernels."""
    child.rate(steps=1)
    return child.rate(steps=1)[0]


def run(where: Course, race: Race, say: Any = print) -> dict[str, Any]:
    """All turns of a race, and what they tell."""
    race = where.present(race)
    found = {
        "title": race.title,
        "network": race.network,
        "batch": race.batch,
        "S": race.S if ".sample" in race.entries[0].who else None,
    }
    children: dict[str, Child] = {}
    entries: dict[str, dict[str, Any]] = {}
    try:
        for entry in race.entries:
            children[entry.name], tried = chosen(where, race, entry)
            rate = warmed(children[entry.name])
            steps = race.steps or turn_steps(race.batch / rate, where.seconds)
            facts = children[entry.name].facts
            entries[entry.name] = {"steps": steps, "tried": tried, "facts": facts, "precision": entry.precision}
            say(f"  {entry.name}: about {rate:.4g} images/s, {facts}{f', tried {tried}' if tried else ''}")
        shares: dict[str, list[float]] = {name: [] for name in children}
        turns = {name: turn(child, entries[name]["steps"], shares[name]) for name, child in children.items()}
        rates = in_turn(turns, where.rounds)
    finally:
        for child in children.values():
            child.close()
    return found | told(race, entries, rates, shares)


def turn(child: Child, steps: int, shares: list[float]) -> Any:
    """What gives images/s of one turn, and notes the share of what follows the backward pass."""

    def once() -> float:
        rate, answer = child.rate(steps=steps)
        if "after_backward" in answer:
            shares.append(answer["after_backward"] / answer["seconds"])
        return rate

    return once


def told(
    race: Race, entries: dict[str, dict[str, Any]], rates: dict[str, list[float]], shares: dict[str, list[float]]
) -> dict[str, Any]:
    """Spread of every contestant, ratios by pairs."""
    for name, values in rates.items():
        entries[name] |= {**spread(values), "values": values}
        if shares[name]:
            entries[name]["after_backward"] = spread(shares[name])
    ratios = [
        {"one": one, "other": other, "wanted": goal, **ratio(rates[one], rates[other])} for one, other, goal in race.wanted
    ]
    return {"entries": entries, "ratios": ratios}
