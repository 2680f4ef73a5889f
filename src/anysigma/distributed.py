"""Work shared among processes, where there are several; with one, every function is the plain thing."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

try:
    import fcntl
except ImportError:  # no POSIX: nobody waits for anybody
    fcntl = None

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


def gathered(ks: Sequence[int], images: Tensor) -> Tensor:
    """All ranks' uint8 images `[n, …]` on the CPU, in the order of their numbers, on every rank."""
    _, world = rank_and_world()
    pieces = [(list(ks), images.cpu())]
    if world > 1:
        pieces = [None] * world
        dist.all_gather_object(pieces, (list(ks), images.cpu()))
    numbers = torch.tensor([k for piece in pieces for k in piece[0]])
    return torch.cat([piece[1] for piece in pieces])[numbers.argsort()]


def say(line: str) -> None:
    """One line, once, whatever the number of processes."""
    if is_first():
        print(line, flush=True)


@contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """One process is inside, others wait and say `waiting`; the file `path` exists meanwhile.

    The system holds the lock, so it ends with its process, however that ends. Where there is none (Windows, some
    network disks) nobody waits.
    """
    lock = _lock(path, waiting) if fcntl else None
    try:
        yield
    finally:
        if lock is not None:
            path.unlink(missing_ok=True)  # while it is held: a process that waits for this very file sees that it is gone
            os.close(lock)


def _lock(path: Path, waiting: str) -> int | None:
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(waiting)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # this disk has no locks
            path.unlink(missing_ok=True)
            os.close(lock)
            return None
        if _is_at(lock, path):
            return lock
        os.close(lock)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
