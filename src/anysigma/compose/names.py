"""Names of folders: the same words find the same folder, on every rank and after every cut."""

import hashlib
import json
import os
import sys
from typing import Any

from omegaconf import DictConfig, OmegaConf

# What does not make another run: where it runs, how it is watched, how far it goes.
NOT_IN_A_RUN = ("hydra", "hardware", "logger", "run", "resume", "job")
NOT_IN_A_STUDY = ("hydra", "hardware", "logger")
HOW_FAR = ("max_steps", "max_time")


def digest(content: Any) -> str:
    """8 hex digits of the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def run_name(*, _root_: DictConfig) -> str:
    """`run`, or <data>-<model>-<8 hex> of all that makes the run: the same command finds its folder again."""
    if _root_.run is not None:
        return str(_root_.run)
    content = {k: v for k, v in OmegaConf.to_container(_root_, resolve=False).items() if k not in NOT_IN_A_RUN}
    content["trainer"] = {k: v for k, v in content["trainer"].items() if k not in HOW_FAR}
    choices = _root_.hydra.runtime.choices
    return f"{choices.data}-{choices.model}-{digest(content)}"


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
    content = {k: v for k, v in OmegaConf.to_container(_root_, resolve=False).items() if k not in NOT_IN_A_STUDY}
    if _root_.report is not None or _root_.compare is not None:
        return f"{'report' if _root_.compare is None else 'compare'}-{digest([_root_.report, _root_.compare])}"
    name = str(_root_.checkpoint or "none").removesuffix("/").removesuffix("/checkpoints/last.ckpt").split("/")[-1]
    return f"{name}/{_root_.hydra.runtime.choices.study}-{digest(content)}"


def asked(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """What stands under `key` at the root of evaluate.yaml, or the default: also where it is null, and in training."""
    said = _root_.get(key) if "checkpoint" in _root_ else None
    return default if said is None else said


NAMES = {"run_name": run_name, "sweep_name": sweep_name, "study_name": study_name, "asked": asked}
