"""Train a diffusion model: `python train.py model=unet sampler=ddim`; `--help` lists every word."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

import anysigma  # noqa: F401  first: it makes torch and torchvision meet
from anysigma.compose.cli import entry, task
from anysigma.compose.config import build, check_train, output_folder, plain, register
from anysigma.machine.distributed import is_first
from anysigma.runs.checkpoint import find
from anysigma.runs.listing import RUNS, finished, refuse_if_not_empty, result

CONF = str(Path(__file__).parent / "conf")
register()


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@task
def main(cfg: DictConfig) -> int:
    """compose → check → build → run."""
    check_train(cfg)
    folder = Path(output_folder())
    if cfg.resume == "never":
        refuse_if_not_empty(folder)
    if message := finished(folder, cfg.trainer.max_steps):
        print(message)
        return 0
    import torch

    torch.manual_seed(cfg.seed)  # the network's first weights
    start = find(cfg.init, "last", RUNS) if cfg.init else None
    code = build(cfg.job).run(folder, plain(cfg), start)
    if code == 0 and is_first():
        print(result(folder, cfg.trainer.max_steps))
    elif code > 128:
        sys.exit(code)
    return code


if __name__ == "__main__":
    entry(main, f"{CONF}/train")
