"""Slurm: a job that was told of its end (sbatch --signal=USR1@SECONDS) goes into the queue again."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from anysigma.machine.distributed import is_first, say

PATIENCE = 30.0  # seconds that scontrol may take: more than that, Slurm may not leave us


@contextmanager
def queued_again() -> Iterator[None]:
    """A command that SIGUSR1 ends, in whatever it is doing, puts its job into the queue again."""
    try:
        yield
    except SystemExit as end:
        requeue(end.code)
        raise


@cache  # a job is asked for once
def requeue(code: int | str | None) -> None:
    """Ask Slurm to queue the job anew, where `code` says that SIGUSR1 ended it and rank 0 asks; says why where it cannot.

    Slurm ends the job as soon as it is asked, so nothing may be left to do. An array's task is asked for as such.
    """
    job = job_id()
    if job is None or code != 128 + getattr(signal, "SIGUSR1", 0) or not is_first():
        return
    try:
        if why := refusal(scontrol("show", "job", "--oneliner", job)):
            say(f"job {job} stays out of the queue: {why}")
            return
        say(f"asking Slurm to queue job {job} again")
        scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError, UnicodeError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        say(f"job {job} could not be queued again: {said[-1] if said else type(error).__name__}")


def job_id() -> str | None:
    """The job as scontrol names it, 12, or 12_3 for task 3 of an array; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID") or None


def refusal(shown: str) -> str:
    """Why a job is not to be requeued, by what `scontrol show job` says of it; "" where it may be."""
    facts = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    if facts.get("BatchFlag") == "0":
        return "it is no batch job"
    return "it was submitted with --no-requeue" if facts.get("Requeue") == "0" else ""


def scontrol(*words: str) -> str:
    """What it prints. Raises CalledProcessError where it fails, TimeoutExpired where it does not answer."""
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
