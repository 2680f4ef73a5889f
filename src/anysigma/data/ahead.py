"""Work begun before its result is asked for, by a few threads, a bounded number of results at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item, Made = TypeVar("Item"), TypeVar("Made")


def ahead(function: Callable[[Item], Made], items: Iterable[Item], threads: int, begun: int) -> Iterator[Made]:
    """function(item) of every item, in the items' order whichever is ready first.

    Threads, not processes: what is worth it here (zlib, libjpeg, numpy's copies) lets other threads run meanwhile.
    At most `begun` items are begun and not yet taken, so that memory stays flat. Raises what the function raises, in its
    place; however it ends, no thread works on.
    """
    pool, items = ThreadPoolExecutor(threads, "ahead"), iter(items)
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, begun))
        while pending:
            made = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield made
    finally:
        pool.shutdown(cancel_futures=True)
