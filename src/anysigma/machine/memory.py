"""How much memory a process uses."""

import os
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
GIB = 2**30


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
