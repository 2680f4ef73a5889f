"""Evaluate a checkpoint: `python evaluate.py checkpoint=<run> sampler=ddim sampler.steps=20`; alone it lists the runs."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

import anysigma  # noqa: F401  first: it makes torch and torchvision meet
from anysigma.compose.cli import entry, task
from anysigma.compose.config import ConfigError, build, check, command, output_folder, plain, register
from anysigma.evaluation.record import Record
from anysigma.evaluation.stored import evaluation
from anysigma.machine.distributed import shown
from anysigma.metrics.card import versions
from anysigma.report.figures import collect
from anysigma.report.page import write_report
from anysigma.report.ranking import compare
from anysigma.runs.listing import RUNS, listing

CONF = str(Path(__file__).parent / "conf")
register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@task
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
    check({name: node for name, node in plain(cfg).items() if name != "features"})
    study, sampler = build(cfg.study), build(cfg.sampler)
    record = Record(folder, build(cfg.logger), {"command": command(), "config": plain(cfg), "versions": versions()})
    if cfg.checkpoint is not None:
        evaluation(cfg, sampler).run(study, sampler, record)
    elif study.needs_checkpoint:
        raise ConfigError(f"checkpoint=<run> is missing; there are: {', '.join(listing(names=True)) or 'none yet'}")
    else:
        record.add(study.run(None, sampler, None, None, folder))
        record.close()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(listing()) or f"no runs below {RUNS} yet: python train.py makes one")
    else:
        entry(main, f"{CONF}/evaluate")
