"""Work shared among processes, where there are several; with one, every function is the plain thing."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from torch import Tensor

from anysigma.machine.secrets import redacted

Item = TypeVar("Item")

# Work over few images is cut into at least so many blocks, for as many processes.
PARTS = 4


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def is_first() -> bool:
    """Whether this is rank 0, also before processes have met: then launchers have said so in the environment."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    said = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((rank for rank in said if rank), "0") == "0" and os.environ.get("NODE_RANK", "0") in ("", "0")


def spread(n: int, block: int) -> int:
    """A block size, at most `block`, at which n images make several blocks to share.

    It does not know how many processes there are: an image stands beside the same neighbours whatever their number.
    """
    return max(1, min(block, math.ceil(n / PARTS)))


def my_share(ks: Sequence[int], block: int) -> list[int]:
    """This rank's images of `ks`: whole blocks in turn, so that every image keeps the neighbours it is computed with."""
    rank, world = rank_and_world()
    return [k for k in ks if (k // block) % world == rank]


def everyones(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    _, world = rank_and_world()
    found = [value] * world
    if world > 1:
        dist.all_gather_object(found, value)
    return found


def firsts(value: Any) -> Any:
    """The first rank's value, on every rank."""
    found = [value]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]


def gathered(ks: Sequence[int], values: Tensor) -> Tensor:
    """All ranks' rows `[n, …]` on the CPU, in the order of their numbers, on every rank; a rank may have none."""
    every = everyones((list(ks), values.cpu()))
    pieces = [piece for piece in every if piece[0]] or every[:1]
    numbers = torch.tensor([k for piece in pieces for k in piece[0]])
    return torch.cat([piece[1] for piece in pieces])[numbers.argsort()]


def in_order(mine: dict[int, Item]) -> list[Item]:
    """All ranks' items in the order of their numbers, on every rank."""
    every = {k: item for some in everyones(mine) for k, item in some.items()}
    return [every[k] for k in sorted(every)]


def say(line: str) -> None:
    """One line, once, whatever the number of processes, without the machine's secrets."""
    if is_first():
        print(redacted(line), flush=True)


def shown(path: Path | str) -> str:
    """A path as a person would type it: relative to where they stand, if it lies below."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """One process is inside, others wait and say `waiting`. The system holds the lock: it ends with its process."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
