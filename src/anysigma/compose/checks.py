"""What only the whole of train.yaml or evaluate.yaml can tell, before anything heavy is built."""

import inspect
import re
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from anysigma.compose.config import TrainConfig, build, check, plain
from anysigma.compose.signatures import near
from anysigma.compose.targets import ConfigError, locate, sources

# Keywords of Trainer that no run of ours can take, and what to say instead.
INSTEAD = {
    "accelerator": "hardware.accelerator", "devices": "hardware.devices", "num_nodes": "hardware.num_nodes",
    "strategy": "hardware.strategy", "precision": "hardware.precision", "logger": "logger=csv, wandb or tensorboard",
    "callbacks": "the group callbacks", "default_root_dir": "run=NAME", "max_epochs": "trainer.max_steps",
    "min_epochs": "trainer.max_steps", "min_steps": "trainer.max_steps", "fast_dev_run": "debug=true",
    "overfit_batches": "debug=true", "limit_train_batches": "trainer.max_steps", "limit_val_batches": "callbacks.held_out.n",
    "val_check_interval": "callbacks.held_out.every", "check_val_every_n_epoch": "callbacks.held_out.every",
    "num_sanity_val_steps": "callbacks.held_out.every", "enable_checkpointing": "callbacks.last.every",
    "enable_progress_bar": "~callbacks.progress", "inference_mode": "evaluate.py",
}  # fmt: skip
# What passes beside the keys of train.yaml: it changes how a step is computed or watched, not which.
PASSING = ("profiler", "detect_anomaly", "deterministic", "benchmark")


def check_train(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain values, held to everything that can be known before the run. Raises ConfigError, ValueError."""
    if unknown := cfg.keys() - TrainConfig.__dataclass_fields__.keys() - {"hydra"}:
        raise ConfigError(f"unknown key {min(unknown)}{near(min(unknown), TrainConfig.__dataclass_fields__)}")
    settle_features(cfg)
    settle_steps(cfg)
    node = plain(cfg)
    check_trainer(node["trainer"])
    check(node)
    if cfg.run is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", cfg.run):
        raise ConfigError(f"run={cfg.run}: a folder's name of letters, digits, '.', '_' and '-'")
    if cfg.resume not in ("auto", "never"):
        raise ConfigError(f"resume={cfg.resume}: auto (go on with what is there) or never")
    build(node["hardware"])
    build(node["sampler"]).pairs(build(node["schedule"]).T)
    return node


def check_evaluate(cfg: DictConfig) -> dict[str, Any]:
    """evaluate.yaml as plain values, held to what may be built; what the checkpoint brings is held to it by itself."""
    node = plain(cfg)
    check({name: value for name, value in node.items() if name != "features"})
    return node


def settle_features(cfg: DictConfig) -> None:
    """A data set that brings no features gets those of features/auto.yaml. Raises ConfigError for a word that is none."""
    if HydraConfig.initialized():
        choices, options = HydraConfig.get().runtime.choices, GlobalHydra.instance().config_loader()
        known, chosen = options.get_group_options("features"), choices.get("features")
        if chosen not in (*known, choices.data):
            raise ConfigError(f"unknown option features={chosen}{near(chosen, known)} Available: {', '.join(known)}")
    if cfg.features is None:
        cfg.features = OmegaConf.load(found("features/auto.yaml"))
    if "_target_" not in cfg.features:
        raise ConfigError("features=run: a run has none yet; features=NAME names them")


def settle_steps(cfg: DictConfig) -> None:
    """trainer.max_steps=1e3 is 1000. Raises ConfigError for what is no whole number of steps, or none."""
    for name, what in (("max_steps", "step"), ("accumulate_grad_batches", "micro-step")):
        value = cfg.trainer[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ConfigError(f"trainer.{name}={value}: a whole number of {what}s")
        if value < 1:
            raise ConfigError(f"trainer.{name}={value}: at least 1 {what} is needed")
        cfg.trainer[name] = int(value)


def check_trainer(trainer: dict[str, Any]) -> None:
    """Raises ConfigError for a keyword of Trainer that would be ignored, overridden, or break what a run promises."""
    listed = OmegaConf.load(found("train.yaml")).trainer.keys()
    for name in sorted(trainer.keys() - listed - set(PASSING)):
        if name in INSTEAD:
            raise ConfigError(f"trainer.{name}: not a run's to set; say {INSTEAD[name]} instead")
        if name in inspect.signature(locate(trainer["_target_"], "trainer")).parameters:
            raise ConfigError(f"trainer.{name}: not a run's to set; beside train.yaml's keys pass {', '.join(PASSING)}")


def found(name: str) -> Path:
    """A file of the folders of YAML that this command composes from, the first of that name."""
    return next(place / name for place in sources() if (place / name).is_file())
