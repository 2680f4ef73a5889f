"""Where the training images lie while a network trains, and who gathers a batch of them: a function of sizes alone."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anysigma.data.ahead import ahead
from anysigma.machine.cgroups import memory_limit

SHARE = 0.25  # of the free memory that images may take: a step's activations, gradients and Adam's moments need the rest
PATIENCE = 600.0  # seconds for a batch: a thousand images from a busy disk may take their time
FROM_MEMORY, FROM_DISK = 1, 4  # threads: one copies faster than a network trains, four wait for a disk at once


@dataclass(frozen=True)
class Way:
    """How images come to the network: `threads` gather batches ahead in the host's memory.

    None: the images lie on the device whole, and only indices travel. `why`: the rest of the line that says it.
    """

    threads: int
    why: str


def way(size: int, device: str, room: int, memory: int) -> Way:
    """The way of `size` bytes of images to a device of that type with `room` bytes free, on a host of `memory` bytes.

    Whole on the device where they take at most a quarter of the room. Else from the host's memory, a batch at a time,
    and where they take more than a quarter of that too, they come from the disk they are mapped from, page by page.
    """
    if size <= SHARE * room:
        return Way(0, "in memory" if device == "cpu" else f"whole on the device ({device})")
    more = f"more than {SHARE:.0%} of the {amount(room)} of the device ({device})"
    if size <= SHARE * memory:
        return Way(FROM_MEMORY, f"in the host's memory, {more}: {FROM_MEMORY} thread fetches ahead")
    return Way(
        FROM_DISK, f"where they are stored, {more} and of the host's {amount(memory)}: {FROM_DISK} threads fetch ahead"
    )


def free(device: torch.device) -> int:
    """Bytes that are free on a device now; of a CPU all that this process may have, as what is mapped gives its pages back.

    That is what the host has, or less where a container holds the process to less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    host, held_to = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_limit()
    return host if held_to is None else min(host, held_to)


def amount(size: float) -> str:
    """Bytes as a person reads them, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def chosen(images: Tensor, entries: Tensor) -> Tensor:
    """Entries, long `[b]` on the images' device, of images uint8 `[N, C, H, W]`: k as it is, k + N mirrored."""
    n = len(images)
    batch = images.index_select(0, entries % n)
    return torch.where((entries >= n)[:, None, None, None], batch.flip(3), batch)


class Fetched:
    """Batches of images uint8 `[b, C, H, W]` in the host's memory, gathered by threads while the network trains.

    `order`: batches of entries, as `chosen` takes them. The images may be mapped from a file: no copy is made of more
    than the batches that wait. `pinned`: page-locked, so that a GPU takes them without anyone waiting. `intact`: asked
    before a batch and after it, raises where the file is not what it was; one that is silent ends in a TimeoutError.
    """

    def __init__(
        self, images: Tensor, order: Sequence[Sequence[int]], threads: int, pinned: bool = False,
        intact: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        self.images, self.order, self.threads, self.pinned = images.contiguous(), order, threads, pinned
        self.intact = intact

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Tensor]:
        return ahead(self.batch, self.order, self.threads, 2 * self.threads, PATIENCE, lambda _: "a batch of images")

    def batch(self, entries: Sequence[int]) -> Tensor:
        """One batch. By numpy: torch would start a second team of threads beside the network's."""
        self.intact()
        k, n = np.asarray(entries), len(self.images)
        batch = torch.empty((len(k), *self.images.shape[1:]), dtype=torch.uint8, pin_memory=self.pinned)
        into = batch.numpy()
        np.take(self.images.numpy(), k % n, axis=0, out=into, mode="clip")  # with another mode numpy copies twice
        mirrored = k >= n
        into[mirrored] = into[mirrored, ..., ::-1]
        self.intact()
        return batch
