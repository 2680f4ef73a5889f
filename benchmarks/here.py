"""This machine, as a figure must name it."""

import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

import torch

from anysigma.metrics.card import versions
from anysigma.studies.speed import processor

UNITS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the widest that /proc/cpuinfo names is said


def facts(device: str) -> dict[str, Any]:
    """Processor or GPU, its cores and memory, versions, date."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": processor(), "units": units(), "cores": cores, "threads": torch.get_num_threads()}
    found |= {"memory_gib": memory(), "versions": versions(), "date": date.today().isoformat()}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def name(device: str) -> str:
    """A file's name for this machine."""
    here = facts(device)
    words = here.get("gpu") or f"{here['processor']} {here['units']} {here['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def units() -> str:
    """The widest vector units that are told, by their flag."""
    try:
        flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    except (OSError, TypeError):
        return platform.machine()
    return next((unit for unit in UNITS if unit in flags), platform.machine())


def memory() -> int | None:
    """GiB of it, where Linux tells."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    except (ValueError, AttributeError):
        return None
