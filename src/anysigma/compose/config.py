"""Configs held to the code they configure: typed roots, `check`, and `build`, the only `instantiate`."""

import difflib
import importlib
import inspect
import re
import shlex
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from anysigma.compose.names import NAMES

# What a config may name beside our own package; a config that comes out of a checkpoint is held to the same list.
LIBRARY_TARGETS = (
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "torch.optim.Adam",
    "torch.optim.AdamW",
)
INSTANTIATE_WORDS = {"_target_", "_partial_", "_convert_", "_recursive_"}


@dataclass
class TrainConfig:
    """The root of train.yaml."""

    seed: int = MISSING
    run: str | None = None
    init: str | None = None
    resume: str = MISSING
    debug: bool = MISSING
    trainer: Any = MISSING
    job: Any = MISSING
    schedule: Any = MISSING
    model: Any = MISSING
    parameterization: Any = MISSING
    objective: Any = MISSING
    sampler: Any = MISSING
    data: Any = MISSING
    features: Any = MISSING
    optimizer: Any = MISSING
    ema: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    hardware: Any = MISSING
    study: Any = MISSING


@dataclass
class DataOverrides:
    """What an evaluation may change about a run's data; null leaves it."""

    root: str | None = None
    batch_size: int | None = None
    workers: int | None = None


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
    features: Any = None
    logger: Any = MISSING
    hardware: Any = MISSING


class ConfigError(ValueError):
    """Bad input, said in one line."""


def register() -> None:
    """Make the root schemas and our resolvers known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    for name, function in {**NAMES, "when": _when}.items():
        OmegaConf.register_new_resolver(name, function, replace=True)


def _when(condition: bool, then: Any, otherwise: Any) -> Any:
    return then if condition else otherwise


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config resolved, as plain types: what a checkpoint stores."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def output_folder() -> str:
    """The folder Hydra made for this job."""
    return HydraConfig.get().runtime.output_dir


def command() -> str:
    """The command line that a person can repeat."""
    return f"python {Path(sys.argv[0]).name} {shlex.join(HydraConfig.get().overrides.task)}"


def build(node: Any) -> Any:
    """The object a node describes: the only `instantiate` of the house. Constructors get objects and plain types."""
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValueError | OSError):  # a constructor's answer to bad input, said by itself
            raise cause from None
        raise


def check(cfg: DictConfig | dict, path: str = "") -> None:
    """Hold every `_target_` node to the signature of its target; raises ConfigError with key, target, near spellings.

    Our own classes: names and types. Library targets: names. Nothing is built.
    """
    node = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    node = dict(sorted(node.items(), key=lambda item: item[0] == "job"))  # a group's own path is the one people type
    for key, target in targets(node, path):
        _check_node(key, target)


def check_train(cfg: DictConfig) -> None:
    """`check`, and what only the whole of train.yaml can tell, with nothing heavy built."""
    if unknown := cfg.keys() - TrainConfig.__dataclass_fields__.keys() - {"hydra"}:
        raise ConfigError(f"unknown key {min(unknown)}{near(min(unknown), TrainConfig.__dataclass_fields__)}")
    check(cfg)
    if cfg.run is not None and not re.fullmatch(r"[A-Za-z0-9._-]+", cfg.run):
        raise ConfigError(f"run={cfg.run}: a folder's name of letters, digits, '.', '_' and '-'")
    if cfg.resume not in ("auto", "never"):
        raise ConfigError(f"resume={cfg.resume}: auto (go on with what is there) or never")
    if cfg.trainer.max_steps < 1:
        raise ConfigError(f"trainer.max_steps={cfg.trainer.max_steps}: at least 1 step is needed")
    build(cfg.hardware)
    build(cfg.sampler).pairs(build(cfg.schedule).T)


def targets(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Every dictionary with a `_target_`, with its dotted key, outside in."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def locate(name: str, key: str) -> Any:
    """The object of a dotted name, if it is on the list; resolved names count, so an alias opens nothing."""
    if not (isinstance(name, str) and (name.startswith("anysigma.") or name in LIBRARY_TARGETS)):
        raise ConfigError(f"{key}._target_: {name} is neither of anysigma nor on the list of library targets")
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError as error:
            if not ".".join(parts).startswith(error.name or " "):
                raise
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        if callable(found) and (name in LIBRARY_TARGETS or str(found.__module__).startswith("anysigma.")):
            return found
        break
    raise ConfigError(f"{key}._target_: {name} names nothing in anysigma that can be built")


def _check_node(key: str, node: dict) -> None:
    target = locate(node["_target_"], key)
    parameters = inspect.signature(target).parameters
    given = node.keys() - INSTANTIATE_WORDS
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in sorted(given - parameters.keys()):
            raise ConfigError(f"{key}.{name}: {node['_target_']} takes no such argument{near(name, parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if lacking := [n for n in missing if n not in given and not node.get("_partial_")]:
        raise ConfigError(f"{key}: {node['_target_']} also needs {', '.join(lacking)}")
    if node["_target_"].startswith("anysigma."):
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
        for name in sorted(given & hints.keys()):
            if not fits(node[name], hints[name]):
                said = f"{key}.{name}={node[name]!r}"
                raise ConfigError(
                    f"{said}: {node['_target_']} wants {_readable(hints[name])}, not {type(node[name]).__name__}"
                )


def fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value can be of the hinted type; a nested node passes for anything that is no plain type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if isinstance(value, dict):
        return hint not in (int, float, str, bool, type(None))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint or type(None))
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    return hint is Any or not isinstance(value, int | float | str | bool | type(None) | list)


def _readable(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("collections.abc.", "").replace("typing.", "")


def near(word: str, candidates: Any) -> str:
    """`; did you mean a or b?`, or nothing."""
    close = difflib.get_close_matches(word, [str(c) for c in candidates], n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else ""
