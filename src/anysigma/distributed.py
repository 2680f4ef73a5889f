"""Work shared among processes, where there are several; with one, every function is the plain thing."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


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
    if rank_and_world()[0] == 0:
        print(line, flush=True)
