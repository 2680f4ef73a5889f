"""A seal on what torch writes: the sha256 of the file's bytes, as the comment that a zip archive may end with.

torch reads such a file like any other. Without the seal a bit that flipped on its way would become a weight: where a
file is mapped from the disk, nothing is checked.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import torch

KIND = b"sha256:"
TAIL = 2 + len(KIND) + 64  # the comment's length and the comment: what is not sealed, but sealed by
LACKING = "truncated, or no file of ours (it does not end with a seal)"
PIECE = 1 << 22  # bytes read at once


class Sealing:
    """Takes an archive from its first byte to its last, as torch writes it, and ends it with its seal."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest, self._held = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        """All but the last two bytes so far: at the end they are the length of the comment, 0."""
        data = memoryview(data).cast("B")
        if len(data) < 2:
            whole = self._held + bytes(data)
        else:
            self._put(self._held)
            whole = data
        self._put(whole[:-2])
        self._held = bytes(whole[-2:])
        return len(data)

    def _put(self, data: Any) -> None:
        self._digest.update(data)
        self._file.write(data)

    def flush(self) -> None:
        """torch asks for it at its end."""

    def end(self) -> None:
        """The seal."""
        comment = KIND + self._digest.hexdigest().encode()
        self._file.write(len(comment).to_bytes(2, "little") + comment)


def save(content: Any, file: BinaryIO) -> None:
    """`content` as torch writes it, sealed. Raises the file's own OSError where it cannot be written."""
    sealing = Sealing(file)
    try:
        torch.save(content, sealing)
    except RuntimeError as error:  # torch, closing the archive after a write that failed
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    sealing.end()


def broken(path: Path) -> str | None:
    """What is wrong with a file, None where its seal holds. What held once is not read again while it stays as it is."""
    status = path.stat()
    return _broken(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(256)
def _broken(path: Path, *as_it_is: int) -> str | None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - TAIL))
        tail = file.read()
        if not tail.startswith((TAIL - 2).to_bytes(2, "little") + KIND):
            return LACKING
        file.seek(0)
        digest, left = hashlib.sha256(), size - TAIL
        while left and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
    same = digest.hexdigest().encode() == tail[2 + len(KIND) :]
    return None if same else "damaged: its bytes are not those that were written (sha256)"
