"""How far long work has come and how long it still takes."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from anysigma.machine.distributed import in_order, rank_and_world

Item = TypeVar("Item")
SECONDS = 30  # between two lines where there is no terminal to redraw


def progress(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The items, with a bar on a terminal and a line every half minute in a log; one process shows it."""
    if rank_and_world()[0] != 0:
        yield from items
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, total=total, transient=True, console=Console(stderr=True))
    else:
        yield from _lines(items, total, what)


def dealt(work: Callable[[int], Item], count: int, what: str, seconds: float = math.inf) -> list[Item]:
    """work(0), …, work(count - 1) in order, each done by one rank, on every rank; those that come in so many seconds.

    Two come at least, whatever they take.
    """
    (rank, world), mine, until = rank_and_world(), {}, time.monotonic() + seconds
    numbers = range(rank, count, world)
    for i in progress(numbers, len(numbers), what):
        mine[i] = work(i)
        if len(mine) * world > 1 and time.monotonic() > until:
            break
    return in_order(mine)


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said > SECONDS and done < total:
            said, left = now, (now - start) / done * (total - done)
            print(f"{what}: {done} of {total}, {left / 60:.1f} min left", file=sys.stderr, flush=True)
