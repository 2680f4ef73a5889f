"""A file of the first process on machines that share no disk with it."""

import hashlib
from pathlib import Path

from anysigma.machine.distributed import everyones, firsts, is_first
from anysigma.machine.writing import written


def delivered(path: Path) -> Path:
    """The path, where every process that has met the others now finds the first one's file, written aside and renamed."""
    found = everyones(digest(path))
    if any(one != found[0] for one in found):
        content = firsts(path.read_bytes() if is_first() else None)
        if digest(path) != found[0]:
            with written(path) as aside:
                aside.write_bytes(content)
    return path


def digest(path: Path) -> str | None:
    """sha256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
