"""`hydra/launcher=jobs`: each job of a sweep is a process with a folder of its own, `hydra.launcher.at_once` at a time.

A job is the command a person would type, `python train.py seed=2`: it can do all that a run can (several processes,
going on, stopping) and knows nothing of its neighbours. Hydra imports this file whenever it starts: keep it light.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.utils import get_args
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import LocalLauncher
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from hydra_plugins.anysigma_sweep._jobs import Job

NO_OTHER_RUN = "run=, hardware=, logger=, callbacks= and trainer.max_steps= make no other run"
MEASURED = ("sampler", "study", "features")  # what a run is measured with: one training serves them all


@dataclass
class JobsConf:
    """`at_once`: how many jobs run at a time, the cores shared out among them; `submitit_folder`: %j is the job."""

    _target_: str = "hydra_plugins.anysigma_sweep.launcher.JobsLauncher"
    submitit_folder: str = "${hydra.sweep.dir}/.submitit/%j"
    at_once: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="jobs", node=JobsConf, provider="anysigma_sweep")


class JobsLauncher(LocalLauncher):
    """submitit's local launcher that starts the next job when one ends. A failed job is counted and leaves the others alone.

    SIGINT, SIGTERM and SIGHUP reach the running jobs, which save; a second one kills them.
    The process ends with 1 where a job failed and with 128 + signal where it was stopped.
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run every job; returns only where all went well."""
        from hydra_plugins.anysigma_sweep._jobs import environment, noted, run, say
        from hydra_plugins.anysigma_sweep._trials import try_first

        at_once = self.params["at_once"]
        if at_once < 1:
            raise HydraException(f"hydra.launcher.at_once={at_once}: at least 1 job has to run at a time")
        jobs = self._jobs(job_overrides, initial_job_idx)
        at_once = min(at_once, len(jobs))
        env = environment(at_once)
        with noted() as asked:
            if at_once > 1:
                try_first(jobs, env, asked)
            run(jobs, at_once, env, asked)
        done, failed = [job for job in jobs if job.code == 0], [job for job in jobs if job.reason]
        if asked:
            said = f"stopped with {len(done)} of {len(jobs)} jobs done; the same command goes on from what is saved"
            say(said, sys.stderr)
        else:
            say(f"{len(jobs)} jobs, {len(failed)} failed")
        for job in failed:
            say(f"  {job.name}: {job.reason}\n    its log: {job.log}", sys.stderr)
        if asked or failed:
            raise SystemExit(128 + asked[0] if asked else 1)
        return [JobReturn(overrides=list(words), status=JobStatus.COMPLETED) for words in job_overrides]

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> "list[Job]":
        """The jobs with their folders. Raises HydraException where two would share one."""
        from hydra_plugins.anysigma_sweep._jobs import Job
        from hydra_plugins.anysigma_sweep._trials import needs

        often = Counter(word for words in job_overrides for word in set(words))
        jobs: dict[Path, Job] = {}
        for i, words in enumerate(job_overrides, first):
            own = " ".join(word.lstrip("+") for word in words if often[word] < len(job_overrides)) or " ".join(words)
            cfg = self._composed(words, i)
            folder = Path(cfg.hydra.sweep.dir) / cfg.hydra.sweep.subdir  # where Hydra would have put this job
            if folder in jobs:
                raise HydraException(
                    f"{jobs[folder].words} and {own} would share a folder, {folder}: {advice(job_overrides)}"
                )
            command, logs = self._command(words, folder, i), self.params["submitit_folder"]
            jobs[folder] = Job(i + 1, first + len(job_overrides), own, folder, command, logs, needs(cfg))
        return list(jobs.values())

    def _composed(self, words: Sequence[str], i: int) -> DictConfig:
        """The config of one job."""
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(words))
        with open_dict(cfg.hydra.job) as job:
            job.num, job.id = i, str(i)
        return cfg

    def _command(self, words: Sequence[str], folder: Path, i: int) -> list[str]:
        """What a person would type for this job alone, with what was said to Hydra itself."""
        args = get_args()
        said = {"--config-path": args.config_path, "--config-name": args.config_name, "--config-dir": args.config_dir}
        flags = [part for flag, value in said.items() if value for part in (flag, value)]
        hydra = [w for w in OmegaConf.to_container(self.config.hydra.overrides.hydra) if not w.startswith("hydra.mode=")]
        place = QuotedString(text=str(folder), quote=Quote.double).with_quotes()
        own = ["hydra.mode=RUN", f"hydra.run.dir={place}", f"hydra.job.num={i}", f"hydra.job.id={i}"]
        return [sys.executable, "-u", os.path.abspath(sys.argv[0]), *flags, *words, *hydra, *own]


def advice(job_overrides: Sequence[Sequence[str]]) -> str:
    """Why two jobs are one run, and where they differ in how it is measured alone, the command that does that."""
    varied = [word.lstrip("+~") for words in job_overrides for word in words if not all(word in w for w in job_overrides)]
    values: dict[str, list[str]] = {}
    for word in dict.fromkeys(varied):
        key, _, value = word.partition("=")
        values.setdefault(key, []).append(value)
    if not all(key.replace("/", ".").split(".")[0] in MEASURED for key in values):
        return NO_OTHER_RUN
    words = " ".join(f"{key}={','.join(found)}" for key, found in values.items())
    return f"one trained network serves them all; train once, then python evaluate.py -m checkpoint=<run> {words}"
