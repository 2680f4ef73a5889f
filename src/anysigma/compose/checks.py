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
from anysigma.compose.targets import ConfigError, locate, nodes, sources

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
    refuse_bare(cfg)
    settle_features(cfg)
    settle_steps(cfg)
    node = plain(cfg)
    check_trainer(node["trainer"])
    check(node)
    if cfg.run is not None and not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", cfg.run):
        raise ConfigError(f"run={cfg.run}: a folder's name of letters, digits, '.', '_' and '-', not beginning with '.'")
    if cfg.resume not in ("auto", "never"):
        raise ConfigError(f"resume={cfg.resume}: auto (go on with what is there) or never")
    refuse_job_words()
    if not any(one.get("_target_", "").endswith(".last.Last") for one in node["callbacks"].values()):
        raise ConfigError("callbacks: without last nothing of the run would be saved")
    if cfg.profile and not any(one.get("_target_", "").endswith(".profile.Profile") for one in node["callbacks"].values()):
        raise ConfigError("profile=true: callbacks has no profile that would do it")
    check_blocks(node)
    check_optimizer(node["optimizer"])
    build(node["hardware"])
    check_samplers(node)
    return node


def refuse_bare(cfg: DictConfig) -> None:
    """Raises ConfigError where a value stands in the place of a group, a callback or a logger."""
    for name in ("trainer", "data", "callbacks", "logger", "optimizer", "hardware", "study", "sampler", "job"):
        if not isinstance(cfg[name], DictConfig) or cfg[name]._is_none():
            raise ConfigError(f"{name}={cfg[name]}: a group of settings; {name}.KEY=VALUE says one of them")
    for group in ("callbacks", "logger"):
        for name, one in cfg[group].items():
            if not isinstance(one, DictConfig):
                raise ConfigError(f"{group}.{name}={one}: settings with a _target_; ~{group}.{name} leaves it out")


def check_evaluate(cfg: DictConfig) -> dict[str, Any]:
    """evaluate.yaml as plain values, held to what may be built; what the checkpoint brings is held to it by itself."""
    node = plain(cfg)
    check({name: value for name, value in node.items() if name != "features"})
    check_blocks(node)
    said = str(OmegaConf.to_container(cfg.study, resolve=False))
    for word in ("n", "sets", "seed", "save"):
        if cfg[word] is not None and f"${{asked:{word}," not in said:
            raise ConfigError(f"{word}={cfg[word]}: this study has no such setting")
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
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:  # nor inf, nor nan
            raise ConfigError(f"trainer.{name}={value}: a whole number of {what}s")
        if value < 1:
            raise ConfigError(f"trainer.{name}={value}: at least 1 {what} is needed")
        cfg.trainer[name] = int(value)


def check_trainer(trainer: dict[str, Any]) -> None:
    """Raises ConfigError for a keyword of Trainer that would be ignored, overridden, or break what a run promises."""
    for name, good, what in (
        ("max_time", lambda v: v is None or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", str(v)), "DD:HH:MM:SS or null"),
        ("gradient_clip_algorithm", lambda v: v in ("norm", "value"), "norm or value"),
        ("gradient_clip_val", lambda v: v is None or (isinstance(v, int | float) and v > 0), "a number above 0, or null"),
        ("profiler", lambda v: v in (None, "simple", "advanced", "pytorch"), "simple, advanced or pytorch"),
    ):
        if not good(trainer.get(name)):
            raise ConfigError(f"trainer.{name}={trainer.get(name)}: {what}")
    listed = OmegaConf.load(found("train.yaml")).trainer.keys()
    for name in sorted(trainer.keys() - listed - set(PASSING)):
        if name in INSTEAD:
            raise ConfigError(f"trainer.{name}: not a run's to set; say {INSTEAD[name]} instead")
        if name in inspect.signature(locate(trainer["_target_"], "trainer")).parameters:
            raise ConfigError(f"trainer.{name}: not a run's to set; beside train.yaml's keys pass {', '.join(PASSING)}")


def found(name: str) -> Path:
    """A file of the folders of YAML that this command composes from, the first of that name."""
    return next(place / name for place in sources() if (place / name).is_file())


def refuse_job_words() -> None:
    """Raises ConfigError for a word below `job`: it would change the run behind the back of what it is known by."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    for word in (word.lstrip("+~") for word in words):
        if re.match(r"job\b", word) and not word.startswith("job.module.block="):
            raise ConfigError(
                f"{word}: job is put together of the other words; say seed=, optimizer.warmup= and so on instead"
            )


def check_blocks(node: dict[str, Any]) -> None:
    """Raises ConfigError for a study that is to compute fewer than one image at once."""
    for key, one in nodes(node["study"], "study"):
        if isinstance(block := one.get("block", 1), int) and block < 1:
            raise ConfigError(f"{key}.block={block}: at least 1 image is computed at once")


def check_samplers(node: dict[str, Any]) -> None:
    """Raises ValueError for a schedule that the parameterisation, the final sampler or a callback's cannot serve."""
    q, parameterization = build(node["job"]["module"]["denoiser"]["process"]), build(node["parameterization"])
    parameterization.check(q)
    build(node["sampler"]).check(q, parameterization)
    for name, one in node["callbacks"].items():
        if isinstance(sampler := one.get("sampler"), dict):
            fewer = {"steps": min(sampler["steps"], q.T)} if sampler.get("steps") else {}  # as they do when T is smaller
            try:
                build({**sampler, **fewer}).check(q, parameterization)
            except ValueError as error:
                raise ConfigError(f"callbacks.{name}: {error}") from None


def check_optimizer(node: dict[str, Any]) -> None:
    """Raises ConfigError where the optimiser refuses its own arguments, as torch says it."""
    from torch import nn, zeros

    for name, one in node.items():
        if isinstance(one, dict) and "_target_" in one:
            try:
                build(one)([nn.Parameter(zeros(1))])
            except ValueError as error:
                raise ConfigError(f"optimizer.{name}: {error}") from None
