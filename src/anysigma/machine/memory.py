"""How much memory a process uses, and whether there was none left."""

import gc
import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
GIB = 2**30
NO_ROOM = ("out of memory", "DefaultCPUAllocator: ")  # what the allocators of torch say, in a RuntimeError


def memory_gib(device: torch.device) -> float | None:
    """GiB: on a GPU the most that tensors took since the last call, elsewhere the process's resident memory now.

    Asks the allocator or the system; waits for no device. None where the system has no /proc.
    """
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return most / GIB
    if not STATM.exists():
        return None
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / GIB


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator of torch found no room; no other error, a MemoryError of Python's least."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in NO_ROOM)


def give_back() -> None:
    """What nothing refers to any more goes back to the device, so that the next request finds it in one piece."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
