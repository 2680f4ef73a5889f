"""What `auto` is settled as: by what a run had, by a trial that was kept, by a new one; plain where none can be made."""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from torch import nn

from anysigma.machine.distributed import is_first, say
from anysigma.machine.hardware import OF_SAMPLING, Hardware
from anysigma.machine.threads import FIRST, Load
from anysigma.machine.trial import fastest, forward, plan
from anysigma.machine.writing import written

SAID = "ANYSIGMA_HARDWARE"  # the choice as JSON: of a parent process for those it starts, of a person who wants none tried
TRIAL = "ANYSIGMA_TRIAL"  # "only": of a sweep to a process that is to settle the hardware and end
KEPT = Path("logs/cache/hardware.json")
BLOCK = 64  # images sampled at once
BUSY = 0.3  # cores that others may use while a trial is made
PATIENCE = timedelta(minutes=10)  # of processes that wait for the first one's trial

# training, sampling: what was chosen; gains: how much faster than the plain one; tried: false where no trial could be made.
Choice = dict[str, Any]
UNTRIED: Choice = {"tried": False}
PARTS = ("training", "sampling", "gains", "tried", "facts", "seconds")


def chosen(facts: dict[str, Any], trial: Callable[[], Choice], kept: Path = KEPT) -> Choice:
    """The choice for these facts (device, versions, network, shape, images, processes, threads): one on all processes.

    Raises ValueError for an environment that says something else than a choice.
    """
    if SAID in os.environ:
        return told(os.environ[SAID])
    processes = int(os.environ.get("WORLD_SIZE", "1") or 1)
    if int(os.environ.get("SLURM_NTASKS", "1") or 1) > 1:
        say("hardware=auto: several tasks were started at once, no trial was made")
        return dict(UNTRIED)
    if "TORCHELASTIC_RUN_ID" in os.environ and processes > 1:
        return from_first(digest(facts), lambda: by_trial(facts, trial, kept))
    return by_trial(facts, trial, kept)


def told(text: str) -> Choice:
    """The environment's choice. Raises ValueError, in one line, for what is none."""
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    if not isinstance(found, dict) or found.keys() - set(PARTS) or not whole({"gains": [1, 1], **found}):
        like = '{"training": {"precision": "bf16-mixed"}}'
        raise ValueError(f"{SAID}={text[:60]}: a choice as JSON, {like} or {{}} for the plain one; unset, a trial is made")
    return found


def from_first(name: str, make: Callable[[], Choice]) -> Choice:
    """The first process's, where torchrun has started them all at once and Lightning has not met them yet.

    By the store in which they will meet. A process group made and ended here would leave its addresses there, and
    Lightning's own, which looks under the same names, would call where nobody answers any more.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=PATIENCE))
    store = dist.PrefixStore(f"anysigma/{name}", store)
    if rank == 0:
        store.set("choice", json.dumps(make()))
    found = json.loads(store.get("choice"))
    if store.add("taken", 1) == world:
        store.set("all", "")
    if rank == 0:  # the store may be this process's, and gone with it
        store.wait(["all"])
    return found


def by_trial(facts: dict[str, Any], trial: Callable[[], Choice], kept: Path) -> Choice:
    """A trial kept from before, else a new one; of several runs that begin at once one tries, the others wait for it."""
    key = digest(facts)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(kept.with_suffix(".lock")):
        if (found := read(kept).get(key)) is not None:
            return found
        load = Load()
        time.sleep(FIRST)
        if load.others() > BUSY:
            say("hardware=auto: the machine is busy, no trial was made, what is auto stays plain")
            return dict(UNTRIED)
        start = time.perf_counter()
        found = {"facts": facts, **trial(), "seconds": round(time.perf_counter() - start, 2)}
        if load.others() > BUSY:
            say("hardware=auto: the machine was busy during the trial, what is auto stays plain")
            return dict(UNTRIED)
        write(kept, {**read(kept), key: found})
    return found


def digest(facts: dict[str, Any]) -> str:
    """By which a choice for these facts is known."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read(kept: Path) -> dict[str, Choice]:
    """What was kept; nothing where there is no such file, or it cannot be read."""
    with suppress(OSError, ValueError):
        found = json.loads(kept.read_text())
        if isinstance(found, dict):
            return {key: one for key, one in found.items() if whole(one)}
    return {}


def whole(one: Any) -> bool:
    """Whether this is a choice as it is kept."""
    if not isinstance(one, dict) or not all(isinstance(one.get(name, {}), dict) for name in ("training", "sampling")):
        return False
    gains = one.get("gains")
    return isinstance(gains, list) and len(gains) == 2 and all(isinstance(gain, int | float) for gain in gains)


def write(kept: Path, choices: dict[str, Choice]) -> None:
    """Aside, then renamed."""
    with written(kept) as aside:
        aside.write_text(json.dumps(choices, indent=1))


def share(choice: Choice) -> None:
    """Let the processes that this one starts have the same."""
    if is_first():
        os.environ[SAID] = json.dumps(choice)


def for_sampling(hardware: Hardware, network: nn.Module, shape: Sequence[int], record: Any) -> Hardware:
    """With what the run samples with whose checkpoint has this record; where it has none, as a trial of the network says."""
    if before := of_sampling(hardware.stored(record)):
        return hardware.settled(before)
    names = [name for name in OF_SAMPLING if getattr(hardware, name) == "auto"]
    if not names:
        return hardware.settled({})

    def trial() -> Choice:
        with torch.random.fork_rng():
            torch.set_num_threads(hardware.most_threads)
            images, seconds = plan(lambda n: forward(network, shape, n, hardware.device), hardware, BLOCK)
            found, gain = fastest(hardware, names, forward(network, shape, images, hardware.device), seconds / 4)
        return {"sampling": {name: getattr(found, name) for name in names}, "gains": [1.0, round(gain, 2)]}

    found = chosen({**network_facts(hardware, network, shape), "asked": "sampling"}, trial)
    if hardware.processes > 1:
        share(found)
    return hardware.settled(of_sampling(found))


def of_sampling(record: Any) -> dict[str, Any]:
    """What a record or a choice says of sampling; nothing where it is none."""
    found = record.get("sampling") if isinstance(record, dict) else None
    return found if isinstance(found, dict) else {}


def network_facts(hardware: Hardware, network: nn.Module, shape: Sequence[int]) -> dict[str, Any]:
    """What a trial of a network depends on."""
    weights = str([(name, tuple(p.shape)) for name, p in network.named_parameters()])
    return {
        "device": device_name(hardware.device), "torch": torch.__version__, "shape": list(shape),
        "network": hashlib.sha256(weights.encode()).hexdigest()[:16], "processes": hardware.processes,
        "threads": hardware.most_threads,
    }  # fmt: skip


def device_name(where: torch.device) -> str:
    """Of the GPU, or of the processor where Linux tells it, else its architecture."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    names: list[str] = []
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
