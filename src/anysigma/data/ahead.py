"""Work begun before its result is asked for, by a few threads, a bounded number of results at a time."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item, Made = TypeVar("Item"), TypeVar("Made")

SLICE = 1.0  # seconds: a process that was stopped for an hour has waited for one slice, not for an hour
GRACE = 5.0  # seconds that threads have to end what they are at


def ahead(
    function: Callable[[Item], Made],
    items: Iterable[Item],
    threads: int,
    begun: int,
    patience: float = math.inf,
    named: Callable[[Item], str] = str,
) -> Iterator[Made]:
    """function(item) of every item, in the items' order whichever is ready first.

    Threads, not processes: what is worth it here (zlib, libjpeg, numpy's copies) lets other threads run meanwhile.
    At most `begun` items are begun and not yet taken, so that memory stays flat. Raises what the function raises, in its
    place, and TimeoutError where a result does not come within `patience` seconds: the line begins with what `named`
    makes of its item. However it ends, no thread works on, but for one that hangs, and that keeps no process alive.
    """
    waiting: SimpleQueue = SimpleQueue()
    team, items, pending = _team(function, waiting, threads), iter(items), deque()
    try:
        for item in islice(items, begun):
            pending.append(_begin(waiting, item))
        while pending:
            item, future = pending.popleft()
            if not _answered(future, patience):
                raise TimeoutError(f"{named(item)}: no answer for {patience:g} s")
            made = future.result()
            pending.extend(_begin(waiting, item) for item in islice(items, 1))
            yield made
    finally:
        for _, future in pending:
            future.cancel()
        _dismiss(team, waiting)


def _team(function: Callable[[Item], Made], waiting: SimpleQueue, threads: int) -> list[Thread]:
    team: list[Thread] = []
    for i in range(threads):  # daemons: ThreadPoolExecutor's are waited for at exit, and one that hangs hangs the process
        thread = Thread(target=_work, args=(function, waiting), name=f"ahead_{i}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more: fewer do it too
            if not team:
                raise OSError(f"no thread can be started: {error}") from None
            break
        team.append(thread)
    return team


def _work(function: Callable[[Item], Made], waiting: SimpleQueue) -> None:
    while (task := waiting.get()) is not None:
        item, future = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(item))
            except BaseException as error:  # handed on to who takes the result
                future.set_exception(error)
        del task, item, future  # else the last result lives as long as the thread waits


def _begin(waiting: SimpleQueue, item: Item) -> tuple[Item, Future]:
    future: Future = Future()
    waiting.put((item, future))
    return item, future


def _answered(future: Future, patience: float) -> bool:
    """Whether the result has come, at the latest after `patience` seconds in which this process ran."""
    waited = 0.0
    while not future.done() and waited < patience:
        wait([future], min(SLICE, patience - waited))
        waited += SLICE
    return future.done()


def _dismiss(team: list[Thread], waiting: SimpleQueue) -> None:
    for _ in team:
        waiting.put(None)
    until = time.monotonic() + GRACE
    for thread in team:
        thread.join(max(0.0, until - time.monotonic()))
