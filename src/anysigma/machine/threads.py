"""CPU threads that follow the free cores.

A team of threads waits for its slowest member at the end of every operation, spinning. Beside another busy process one
member has no core, and two threads on two cores fall to a tenth of what one thread makes; so the team is never larger
than the number of cores that others leave free.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anysigma.machine.cgroups import cpu_limit
from anysigma.machine.distributed import say

FIRST, EVERY = 0.2, 0.5  # seconds: of the reading before the first step, and between two later ones
FALL, RISE = 0.5, 0.25  # a core counts as free while others use less than half of it, and again from a quarter down
RISE_AFTER = 2  # readings in a row: a load that comes is answered at once, one that goes must have gone
STAT = Path("/proc/stat")


def cores() -> int:
    """CPU cores this process may use: OMP_NUM_THREADS where a launcher has shared them out, else its affinity's.

    Fewer, at least 1, where a container holds it to fewer: past its share all threads of a team stand still.
    """
    if (said := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return int(said)
    held_to = cpu_limit()
    return len(affinity()) if held_to is None else max(1, min(len(affinity()), int(held_to)))


def affinity() -> set[int]:
    """The numbers of the cores that the system lets this process use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


class Load:
    """How many of this process's cores others keep busy, from /proc/stat less our own time.

    `own`: seconds of CPU time that are ours, of all processes of the run; `stat`, `clock`: where time is read.
    """

    def __init__(
        self, own: Callable[[], float] = time.process_time, stat: Path = STAT, clock: Callable[[], float] = time.monotonic
    ):
        self._own, self._stat, self._clock = own, stat, clock
        self._cpus = affinity()
        self._last = self._reading()

    @property
    def known(self) -> bool:
        """Whether the system tells it."""
        return self._last is not None

    def others(self) -> float:
        """Cores that others have used since the last call, on average; 0 where the system does not tell."""
        now = self._reading()
        if now is None or self._last is None:
            return 0.0
        (then, busy_then, own_then), (at, busy, own), self._last = self._last, now, now
        return max(0.0, (busy - busy_then - (own - own_then)) / max(at - then, 1e-9))

    def _reading(self) -> tuple[float, float, float] | None:
        try:
            busy = busy_seconds(self._stat.read_text(), self._cpus)
        except OSError:
            return None
        return self._clock(), busy, self._own()


def busy_seconds(stat: str, cpus: set[int]) -> float:
    """Seconds that these cores have worked, as /proc/stat counts them: all but idle, waiting for a disk, and niced work.

    What runs at a lower priority makes way for us, unless we are niced ourselves.
    """
    tick, niced = os.sysconf("SC_CLK_TCK"), os.getpriority(os.PRIO_PROCESS, 0) > 0
    total = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields[:8])
            total += user + system + irq + softirq + steal + nice * niced
    return total / tick


class Following:
    """At most `most` threads, fewer while others keep cores busy; read every half second.

    `team`: processes of this run that share the cores, each with as many threads.
    """

    def __init__(self, most: int, team: int = 1, load: Load | None = None, clock: Callable[[], float] = time.monotonic):
        self.most, self.team, self.count = most, team, most
        self._load, self._clock, self._higher = load or Load(), clock, 0
        self._next = 0.0
        if self.most > 1 and not self._load.known:
            say(f"{self.most} threads, also while others work here: this system does not tell how busy its cores are")
        elif self.most > 1:
            time.sleep(FIRST)
            self.read()

    def read(self) -> int:
        """The count for what comes next, after a new reading."""
        self._next = self._clock() + EVERY
        free = len(affinity()) - self._load.others()
        few, many = self._each(free + FALL), self._each(free + RISE)
        self._higher = self._higher + 1 if many > self.count else 0
        if few < self.count:
            self.count = few
        elif self._higher >= RISE_AFTER:
            self.count, self._higher = many, 0
        return self.count

    def now(self) -> int:
        """The count for what comes next, read anew where half a second has passed."""
        return self.read() if self.most > 1 and self._clock() >= self._next else self.count

    def _each(self, free: float) -> int:
        """Whole threads of each of the team, at least 1, at most `most`."""
        return max(1, min(self.most, int(free) // self.team))


def follow(network: torch.nn.Module, most: int, compiled: bool = False) -> None:
    """Before every call of the network, set as many threads as cores are free; outside of what is `compiled`."""
    following = Following(most)

    def act(*_: Any) -> None:
        torch.set_num_threads(following.now())

    network.register_forward_pre_hook(torch.compiler.disable(act) if compiled else act)
