"""A run from its first start to its end: begun again where it went back, ended in one line where it cannot go on."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from anysigma.machine.distributed import is_first, rank_and_world, say
from anysigma.machine.memory import out_of_memory
from anysigma.runs.not_finite import NotFinite
from anysigma.training.callbacks.finite import GoneBack
from anysigma.training.ending import Outcome
from anysigma.training.fitting import advice
from anysigma.training.job import Facts, TrainingJob

# Exit codes of train.py beside 0 (done), 1 (an error of the code; not measured), 2 (bad input), 128 + n (signal n).
NOT_FINITE, NO_MEMORY = 3, 4


def to_the_end(make: Callable[[], TrainingJob], seed: int, folder: Path, facts: Facts, start: Path | None = None) -> Outcome:
    """Run the job that `make` makes, for each start another, with `seed` for its first weights, as a new process would.

    Numbers that are not finite end it with code 3, a device without room for a step with code 4; what is saved stays.
    """
    skipped: list[int] = []
    left = TrainingJob.left
    while True:
        torch.manual_seed(seed)
        job, told = make(), replace(facts)
        job.data.skipped, job.left = skipped, left
        try:
            return job.run(folder, told, start)
        except GoneBack as why:
            say(str(why))
            skipped, left = why.skipped, why.left
        except NotFinite as why:
            return ended(str(why), NOT_FINITE, is_first())
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            break
    found = ended(advice(job, told, folder), NO_MEMORY, True)  # the error is gone, and with it what its frames held
    if rank_and_world()[1] > 1:
        sys.exit(found.code)  # the others may wait for this process in a sum: they are not to be met again
    return found


def ended(line: str, code: int, speaks: bool) -> Outcome:
    """One line on stderr; loggers are closed."""
    if speaks:
        print(f"error: {line}", file=sys.stderr, flush=True)
    return Outcome(code, False, [])
