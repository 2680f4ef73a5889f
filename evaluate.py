"""Evaluate a checkpoint: `python evaluate.py checkpoint=<run> sampler=ddim sampler.steps=20`; alone it lists the runs."""

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take seconds: Ctrl-C ends them without a trace

import hydra
from omegaconf import DictConfig

import anysigma  # noqa: F401  first: it makes torch and torchvision meet
from anysigma.compose.checks import check_evaluate
from anysigma.compose.cli import entry, task
from anysigma.compose.config import build, command, output_folder, register
from anysigma.compose.targets import ConfigError
from anysigma.machine.distributed import shown
from anysigma.machine.signals import SIGNALS
from anysigma.machine.slurm import queued_again
from anysigma.machine.watch import watched
from anysigma.metrics.card import versions
from anysigma.report.figures import collect
from anysigma.report.page import write_report
from anysigma.report.ranking import compare
from anysigma.runs.checkpoint import find
from anysigma.runs.listing import RUNS, listing

CONF = Path(__file__).parent / "conf"
register(CONF)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
@task
@watched
def main(cfg: DictConfig) -> None:
    """compose → check → build → run."""
    folder = Path(output_folder())
    if cfg.compare is not None:
        ranking = compare(cfg.compare, cfg.across)
        (folder / "comparison.txt").write_text(ranking + "\n")
        print(ranking)
        return
    if cfg.report is not None:
        print(shown(write_report(folder, collect(cfg.report))))
        return
    node = check_evaluate(cfg)
    from anysigma.evaluation.record import Record
    from anysigma.evaluation.stored import opened  # Lightning and what comes with it: after the checks

    study, sampler = build(node["study"]), build(node["sampler"])
    record = Record(folder, build(node["logger"]), {"command": command(), "config": node, "versions": versions()})
    if cfg.checkpoint is not None:
        path, hardware = find(cfg.checkpoint, cfg.which, RUNS), build(node["hardware"])
        asked = {"weights": cfg.weights, "features": node["features"], "data": node["data"]}
        opened(path, sampler, hardware, **asked).run(study, sampler, record)
    elif study.needs_checkpoint:
        raise ConfigError(f"checkpoint=<run> is missing; there are: {', '.join(listing(names=True)) or 'none yet'}")
    else:
        record.add(study.run(None, sampler, None, None, folder))
        record.close()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(listing()) or f"no runs below {RUNS} yet: python train.py makes one")
    else:
        with SIGNALS.heard(), queued_again():
            entry(main, str(CONF / "evaluate"))
