"""Evaluate a checkpoint: `python evaluate.py checkpoint=<run> sampler=ddim sampler.steps=20`; alone it lists the runs."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

import anysigma  # noqa: F401  first: it makes torch and torchvision meet
from anysigma.checkpoint import find, load_weights, read
from anysigma.cli import entry, task
from anysigma.config import ConfigError, build, check, command, output_folder, plain, register, stored_data
from anysigma.metrics.card import versions
from anysigma.record import Record
from anysigma.runs import RUNS, listing

CONF = str(Path(__file__).parent / "conf")
register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
@task
def main(cfg: DictConfig) -> None:
    """compose → check → build → run."""
    check(cfg)
    study, sampler, folder = build(cfg.study), build(cfg.sampler), Path(output_folder())
    record = Record(folder, build(cfg.logger), {"command": command(), "config": plain(cfg), "versions": versions()})
    if cfg.checkpoint is None:
        if study.needs_checkpoint:
            raise ConfigError(f"checkpoint=<run> is missing; there are: {', '.join(listing(names=True)) or 'none yet'}")
        record.add(study.run(None, sampler, None, None, folder))
        record.close()
        return
    path = find(cfg.checkpoint, cfg.which, RUNS)
    checkpoint = read(path)
    config = checkpoint["config"]
    denoiser, data = config["job"]["module"]["denoiser"], stored_data(config, cfg.data)
    features = cfg.features or config["features"]
    check({"denoiser": denoiser, "data": data, "features": features})
    sampler.pairs(build(config["schedule"]).T)
    from anysigma.studies.evaluation import Evaluation

    evaluation = Evaluation(
        denoiser=load_weights(build(denoiser), checkpoint, cfg.weights),
        data=build(data),
        features=build(features),
        hardware=build(cfg.hardware),
        card={
            "checkpoint": str(path),
            "step": checkpoint["step"],
            "schedule": config["schedule"],
            "weights": f"ema {config['ema']['decay']}" if cfg.weights == "ema" else "raw",
        },
    )
    evaluation.run(study, sampler, record)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print("\n".join(listing()) or f"no runs below {RUNS} yet: python train.py makes one")
    else:
        entry(main, f"{CONF}/evaluate")
