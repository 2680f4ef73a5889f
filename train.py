"""Train a diffusion model: `python train.py model=unet sampler=ddim`; `--help` lists every word."""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take seconds: Ctrl-C ends them without a trace

import hydra
from omegaconf import DictConfig

import anysigma  # noqa: F401  first: it makes torch and torchvision meet
from anysigma.compose.checks import check_train
from anysigma.compose.cli import entry, task
from anysigma.compose.config import build, command, output_folder, register, study_word
from anysigma.machine.meeting import same
from anysigma.machine.signals import SIGNALS
from anysigma.machine.slurm import queued_again
from anysigma.machine.watch import watched
from anysigma.metrics.card import versions
from anysigma.runs.checkpoint import find
from anysigma.runs.identity import identity
from anysigma.runs.listing import RUNS, reached, refuse_if_not_empty
from anysigma.runs.lock import hold

CONF = Path(__file__).parent / "conf"
register(CONF)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
@task
@watched
def main(cfg: DictConfig) -> None:
    """compose → check → build → run → measure."""
    node, folder = check_train(cfg), Path(output_folder())
    if cfg.resume == "never":
        refuse_if_not_empty(folder)
    hold(folder)
    from anysigma.evaluation.final import final_figures  # Lightning and what comes with it: after the checks
    from anysigma.training.ending import Final, leave, loggers_of

    loggers = build(node["logger"])
    step, who = reached(folder, identity(node)), identity(node)
    same({"the step that is saved": step})  # of processes that torchrun started at once; others compare when they meet
    if step < cfg.trainer.max_steps:
        from anysigma.training.job import Facts
        from anysigma.training.starts import to_the_end

        start = find(cfg.init, "last", RUNS, "init") if cfg.init and step == 0 else None
        facts = Facts({k: v for k, v in node.items() if k != "job"}, who)
        outcome = to_the_end(lambda: build(node["job"]), cfg.seed, folder, facts, start)
        if not outcome.done:
            leave(outcome.code)
        final = Final(outcome.loggers, cfg.trainer.max_steps)
        loggers = {"final": lambda **_: final}
    else:
        if cfg.profile:
            print(f"profile=true: this run is at its last step; trainer.max_steps={step + 100} goes further")
        loggers = loggers_of(folder, loggers)
    sys.exit(final_figures(folder, node, study_word(), loggers, {"command": command(), "versions": versions()}))


if __name__ == "__main__":
    with SIGNALS.heard(), queued_again():
        entry(main, str(CONF / "train"))
