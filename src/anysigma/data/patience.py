"""Reading that may get no answer: from a disk in the network that is gone, from a pipe that nobody writes to."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from itertools import count, takewhile
from pathlib import Path
from typing import BinaryIO, TypeVar

from anysigma.data.ahead import ahead

Item = TypeVar("Item")

PATIENCE = 60.0  # seconds
BLOCK = 1 << 24


def patiently(items: Iterable[Item], what: str, patience: float = PATIENCE) -> Iterator[Item]:
    """The items, each made by a thread; TimeoutError where one does not come within `patience` seconds, for `what`."""
    running, end = iter(items), object()
    found = ahead(lambda _: next(running, end), count(), 1, 1, patience, lambda _: what)
    return takewhile(lambda item: item is not end, found)


def answer(function: Callable[[], Item], what: str, patience: float = PATIENCE) -> Item:
    """function(), or TimeoutError where that takes longer."""
    (made,) = ahead(lambda _: function(), [None], 1, 1, patience, lambda _: what)
    return made


def whole(path: Path, patience: float = PATIENCE, at_most: int | None = None) -> bytearray:
    """The bytes of a file, its first `at_most`; TimeoutError where a block of them does not come within `patience` s.

    Raises OSError, and ValueError for what is no file.
    """
    content = bytearray()
    for block in patiently(_blocks(path, at_most), str(path), patience):
        content += block
    return content


def is_file(path: Path) -> bool:
    """Whether there is such a file; TimeoutError where the disk does not say."""
    return answer(path.is_file, str(path))


def regular(path: Path) -> BinaryIO:
    """The file opened; raises ValueError for what is none: who opens a pipe waits for somebody to write to it."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb")
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError("a pipe or a device, no file")


def _blocks(path: Path, at_most: int | None) -> Iterator[bytes]:
    left = at_most
    with regular(path) as file:
        while block := file.read(BLOCK if left is None else min(BLOCK, left)):
            left = None if left is None else left - len(block)
            yield block
