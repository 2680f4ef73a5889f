"""What several processes have to agree on, also before the backend has brought them together."""

import json
import os
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist

from anysigma.machine.distributed import everyones, is_first, rank_and_world

PATIENCE = timedelta(minutes=10)  # of a process that waits for what the others say
CURE = "every machine needs the same files and the same command: a shared disk, or a copy of the run's folder"


def told(value: Any) -> list[Any]:
    """Every process's value (numbers, text, lists, dictionaries), in the order of ranks, on all of them.

    Before they have met, by the store of torchrun, where that started them all at once; else a process knows its own
    alone: one that Lightning's launcher starts reads the files of the one that started it, before that one goes on.
    """
    if rank_and_world()[1] > 1 or not by_torchrun():
        return everyones(value)
    store, rank, world = _store()
    n = store.add(f"anysigma/calls/{rank}", 1)
    store.set(f"anysigma/{n}/{rank}", json.dumps(value))
    return [json.loads(store.get(f"anysigma/{n}/{other}")) for other in range(world)]


def by_torchrun() -> bool:
    """Whether torchrun has started this process and others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1") or 1) > 1


@cache
def _store() -> tuple[dist.Store, int, int]:
    """That in which Lightning's processes will meet too; kept, for it may be this process that serves it."""
    return next(dist.rendezvous("env://", timeout=PATIENCE))


def agreed(value: Any) -> Any:
    """The first rank's answer, on every rank."""
    return told(value)[0]


def same(facts: dict[str, Any]) -> None:
    """Raises ValueError on every process, where one has something else than the first; the first alone says what."""
    every = told(facts)
    for rank, theirs in enumerate(every):
        for name, value in every[0].items():
            if theirs.get(name) != value:
                found = f"{name}: {value} on process 0, {theirs.get(name)} on process {rank}"
                raise ValueError(f"processes do not agree on {found}; {CURE}") if is_first() else SystemExit(2)
