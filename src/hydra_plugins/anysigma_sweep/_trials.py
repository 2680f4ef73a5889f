"""What `hardware=auto` becomes in a sweep whose jobs run beside each other: tried before they begin, by itself.

Two jobs that begin at once disturb each other's trial: one finds the machine busy and stays plain, the other does not,
and the jobs of one sweep compute differently. What a trial finds lies in logs/cache, where the jobs look for it. One job
at a time needs none of this: the first tries, the others find it there.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from anysigma.machine.choice import SAID, TRIAL, UNTRIED
from anysigma.machine.hardware import OF_SAMPLING
from hydra_plugins.anysigma_sweep._jobs import Job, run

AUTO = "hardware=auto: "  # begins the line in which a run says it
SETTLED = (*OF_SAMPLING, "fused")  # by a trial on any machine; a GPU's settles more
# What a trial may depend on, of a run's config: rather one key too many, at which a trial finds what was kept.
KEYS = (
    "model", "parameterization", "objective", "optimizer", "ema", "hardware", "data.shape", "data.batch_size",
    "job.module.block", "trainer.accumulate_grad_batches",
)  # fmt: skip


def needs(cfg: DictConfig) -> str | None:
    """What a job's trial depends on; None where its hardware is said, and for an evaluation.

    That samples as its run's record says. A record of another accelerator says nothing, and a trial of sampling follows;
    but it changes a figure within its rounding alone, and to know of it here, checkpoints would have to be read.
    """
    if "job" not in cfg or "auto" not in [cfg.hardware.get(name) for name in SETTLED]:
        return None
    return json.dumps([plain(OmegaConf.select(cfg, key)) for key in KEYS], sort_keys=True, default=str)


def plain(node: Any) -> Any:
    """A node of a config, resolved."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


class Trial(Job):
    """A job's own command, ended where its hardware is settled: what stays of it is its log and what it found."""

    def __init__(self, number: int, job: Job, place: str):
        folder = QuotedString(text=place, quote=Quote.double).with_quotes()
        command = [*job.command, f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
        super().__init__(f"trial-{number}", 0, job.words, Path(place), command, job.submitit_folder)
        self.name = f"trial {job.words}"

    def _begins(self) -> str:
        return f"{self.name}  by itself, before the jobs"

    @property
    def found(self) -> bool:
        """Whether there is a choice for the jobs to find."""
        return self.code == 0 and self._said().startswith(f"{AUTO}training ")

    def _said(self) -> str:
        return ([""] + [line for line in self._paths.stdout.read_text().splitlines() if line.startswith(AUTO)])[-1]

    def _outcome(self) -> str:
        if self.code != 0:
            return f"failed, the jobs go on in plain fp32: {self.reason}" if self.reason else "stopped"
        return self._said() or "done"


def try_first(jobs: Iterable[Job], env: dict[str, str], asked: Sequence[int]) -> None:
    """A trial for the first of those jobs that need the same, one after the other, with the cores that a job will have.

    None where the environment says the hardware, nor for a run that goes on: its checkpoint says it. Where a trial finds
    nothing, on a busy machine, its jobs are all plain: none tries when another happens to have ended.
    """
    if SAID in env:
        return
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        if job.needs is not None and not os.path.exists(job.folder / "checkpoints" / "last.ckpt"):
            alike.setdefault(job.needs, []).append(job)
    with TemporaryDirectory() as place:
        trials = [Trial(i, group[0], place) for i, group in enumerate(alike.values(), 1)]
        run(trials, 1, {**env, TRIAL: "only"}, asked)
    for trial, group in zip(trials, alike.values(), strict=True):
        for job in group if not trial.found else ():
            job.env = {SAID: json.dumps(UNTRIED)}
