"""What fits into memory after something did not."""

from collections.abc import Iterator
from pathlib import Path

import torch

from anysigma.machine.distributed import rank_and_world, shown
from anysigma.machine.memory import give_back, out_of_memory
from anysigma.runs.checkpoint import read
from anysigma.runs.listing import last
from anysigma.training.job import Facts, TrainingJob


def advice(job: TrainingJob, facts: Facts, folder: Path) -> str:
    """One line: how many images a step of a process can take at once, tried, and how to train the same steps with them."""
    rank, _ = rank_and_world()
    who = f"process {rank}: " if rank else ""
    path, data, k = last(folder), job.data, job.trainer.keywords["accumulate_grad_batches"]
    kept = f"{shown(path)} holds step {read(path)['step']}" if path.exists() else "nothing was saved before"
    processes = job.hardware.placed().processes
    share = data.share(processes, k)
    found = next((micro for micro in micro_steps(data.batch_size // processes, k) if fits(job, facts, micro)), None)
    if found is None:
        can = "not even 1 fits; a smaller model or hardware.precision=bf16-mixed takes less"
    elif found == k:
        can = f"the step alone fits; callbacks sample job.module.block={job.module.block} images at once: fewer may fit"
    else:
        fit = data.share(processes, found)
        can = f"{fit} fit; trainer.accumulate_grad_batches={found} makes the same steps of {data.batch_size} images of them"
    return f"{who}out of memory with {share} images at once: {can}; {kept}"


def micro_steps(most: int, k: int) -> Iterator[int]:
    """k, then each time the next divisor of `most` that at least halves the images at once."""
    while k <= most:
        yield k
        k = next((more for more in range(2 * k, most + 1) if most % more == 0), most + 1)


def fits(job: TrainingJob, facts: Facts, micro: int) -> bool:
    """Whether one whole step, optimiser and average too, on copies, finds room with so many micro-steps."""
    job.module.trainer = None
    job.module.zero_grad()
    give_back()
    rehearsal = job.rehearsal()
    hardware = rehearsal.hardware.settled(facts.config["hardware"])
    images = job.data.share(hardware.processes, micro)
    try:
        with torch.random.fork_rng():
            rehearsal.work(images)(hardware)()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    return True
