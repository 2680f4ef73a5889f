"""Names of folders: the same words find the same folder, on every rank and after every cut."""

import os
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from anysigma.runs.identity import ROOTS, asked_precision, digest, evaluation_name, identity


def run_name(*, _root_: DictConfig) -> str:
    """`run`, or <data>-<model>-<8 hex> of all that makes the weights: the same command finds its folder again."""
    if _root_.run is not None:
        return str(_root_.run)
    content = {name: resolved(_root_, name) for name in (*ROOTS, "trainer")}
    choices = _root_.hydra.runtime.choices
    return f"{choices.data}-{choices.model}-{digest(identity(content))}"


def resolved(root: DictConfig, name: str) -> Any:
    """A root node as plain values."""
    node = root[name]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def sweep_name() -> str:
    """sweep-<8 hex> of the command line: the same sweep finds its folder again, and so does every job of it.

    A job knows only its own overrides, so the name travels in the environment.
    """
    return os.environ.setdefault("ANYSIGMA_SWEEP", f"sweep-{digest(sorted(word for word in sys.argv[1:] if not how(word)))}")


def how(word: str) -> bool:
    """Whether a word of the command line says how a sweep runs, not what it is."""
    return word in ("-m", "--multirun") or word.startswith(("hydra.", "hydra/", "hardware", "logger"))


def study_name(*, _root_: DictConfig) -> str:
    """<run>/<study>-<8 hex> of all that makes the figures."""
    if _root_.report is not None or _root_.compare is not None:
        return f"{'report' if _root_.compare is None else 'compare'}-{digest([_root_.report, _root_.compare])}"
    features = resolved(_root_, "features")
    return evaluation_name(
        checkpoint_name(_root_.checkpoint), _root_.hydra.runtime.choices.study,
        study_node=resolved(_root_, "study"), sampler=resolved(_root_, "sampler"),
        features=features if "_target_" in features else None,
        which=_root_.which, weights=_root_.weights, data=resolved(_root_, "data"),
        precision=asked_precision(resolved(_root_, "hardware")),
    )  # fmt: skip


def checkpoint_name(checkpoint: str | None) -> str:
    """A run's name below logs/train, whichever way `checkpoint=` says it; of a path elsewhere the last part."""
    if checkpoint is None:
        return "none"
    path = Path(checkpoint.removesuffix("/").removesuffix("/checkpoints/last.ckpt"))
    runs = Path("logs/train")
    absolute = path if path.is_absolute() else Path.cwd() / path
    if absolute.is_relative_to(Path.cwd() / runs):
        path = absolute.relative_to(Path.cwd() / runs)
    return str(path) if not path.is_absolute() and ".." not in path.parts and not path.suffix else path.name


def asked(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """What stands under `key` at the root of evaluate.yaml, or the default: also where it is null, and in training."""
    said = _root_.get(key) if "checkpoint" in _root_ else None
    return default if said is None else said


NAMES = {"run_name": run_name, "sweep_name": sweep_name, "study_name": study_name, "asked": asked}
