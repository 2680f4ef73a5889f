"""Configs held to the code they configure: typed roots, `check`, and `build`, the only `instantiate`."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.resolvers import oc

from anysigma.compose.all_studies import all_studies, own_folder
from anysigma.compose.names import NAMES
from anysigma.compose.signatures import check_node
from anysigma.compose.targets import CONF, Allowed, ConfigError, allowed, nodes
from anysigma.machine.secrets import refuse_values, refuse_variable


@dataclass
class TrainConfig:
    """The root of train.yaml."""

    seed: int = MISSING
    run: str | None = None
    init: str | None = None
    resume: str = MISSING
    debug: bool = MISSING
    profile: bool = MISSING
    trainer: Any = MISSING
    job: Any = MISSING
    schedule: Any = MISSING
    model: Any = MISSING
    parameterization: Any = MISSING
    objective: Any = MISSING
    sampler: Any = MISSING
    data: Any = MISSING
    features: Any = None  # null: the data set brings none
    optimizer: Any = MISSING
    ema: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    hardware: Any = MISSING
    study: Any = MISSING


@dataclass
class DataOverrides:
    """What an evaluation may change about a run's data: where they lie; null leaves it."""

    root: str | None = None
    download: bool | None = None


@dataclass
class EvaluateConfig:
    """The root of evaluate.yaml."""

    checkpoint: str | None = None
    which: str = MISSING
    weights: str = MISSING
    debug: bool = MISSING
    report: Any = None
    compare: list[str] | None = None
    across: list[str] = field(default_factory=list)
    data: DataOverrides = MISSING
    n: int | None = None
    sets: int | None = None
    seed: int | None = None
    save: str | None = None
    sampler: Any = MISSING
    study: Any = MISSING
    features: Any = MISSING
    logger: Any = MISSING
    hardware: Any = MISSING


def register(conf: Path = CONF) -> None:
    """Make the root schemas, study=all and our resolvers known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(group="study", name="all", node=all_studies(conf))
    for name, function in {**NAMES, "when": _when, "oc.env": _variable}.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def _when(condition: bool, then: Any, otherwise: Any) -> Any:
    chosen = then if condition else otherwise
    return OmegaConf.create(chosen) if isinstance(chosen, list) else chosen  # a bare list breaks --cfg job --resolve


def _variable(name: str, *default: Any) -> str | None:
    refuse_variable(name)  # a config is stored, in .hydra, in checkpoints and by loggers
    return oc.env(name, *default)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved, as plain types: what is checked, built and stored."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def output_folder() -> str:
    """The folder Hydra made for this job."""
    return HydraConfig.get().runtime.output_dir


def study_word() -> str:
    """The study as it was typed."""
    return HydraConfig.get().runtime.choices.study


def command() -> str:
    """The command line that a person can repeat."""
    words = [part for folder in own_folder() for part in ("--config-dir", str(folder))]
    return f"python {Path(sys.argv[0]).name} {shlex.join([*words, *HydraConfig.get().overrides.task])}"


def build(node: Any) -> Any:
    """The object a node describes: the only `instantiate` of the house. Constructors get objects and plain types.

    The node is resolved once, and no string of it is resolved again. Raises ConfigError for one that could be.
    """
    node = plain(node) if OmegaConf.is_config(node) else node
    refuse_references(node)
    try:
        return instantiate(node, _convert_="all")
    except RecursionError:
        raise ConfigError("a config is nested too deeply to be built") from None
    except InstantiationException as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ConfigError | OSError):
            raise cause from None
        if isinstance(cause, ValueError):  # a constructor's answer to bad input, said by itself, whosever class it is
            raise type(cause)(*cause.args).with_traceback(None) from None
        raise


def refuse_references(node: Any, path: str = "") -> None:
    """Raises ConfigError where a key or a string holds `${`: it would be resolved where it is built."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                raise ConfigError(f"{path}: the key {key!r} is no word")
            refuse_references(key, path)
            refuse_references(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            refuse_references(value, f"{path}[{i}]")
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{path}: {node!r} holds ${{, which would be resolved; plain values only")


def check(cfg: DictConfig | dict[str, Any], may: Allowed | None = None) -> None:
    """Hold every `_target_` node to what may be built at its key (what conf/ names) and to its signature.

    Our own classes and a person's: names and types. Library targets: names. Nothing is built. Raises ConfigError.
    """
    node = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    refuse_references(node)
    refuse_values(node)
    may = may or allowed()
    node = dict(sorted(node.items(), key=lambda item: item[0] == "job"))  # a group's own path is the one people type
    for key, found in nodes(node, ""):
        may.require(found, key)
        check_node(key, found)
