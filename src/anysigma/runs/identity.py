"""What makes a run, as plain dictionaries: the same identity finds the same folder and may go on from its checkpoint."""

import hashlib
import json
import re
from typing import Any

# What makes a run's weights. Not: how they are sampled, measured, watched, and on what hardware.
ROOTS = ("data", "schedule", "model", "parameterization", "objective", "optimizer", "ema", "seed", "init", "debug")
OF_TRAINER = ("gradient_clip_val", "gradient_clip_algorithm")
# Where the images lie does not make them: their content is held to a hash of its own.
NOT_OF_DATA = ("root", "download", "cache", "workers", "patience")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes the weights, numbers in one form: 1, 1.0 and 1e0 are one number."""
    found = {name: canonical(config.get(name)) for name in ROOTS}
    found["data"] = without(found["data"], NOT_OF_DATA)
    return found | {"trainer": {name: canonical(config["trainer"].get(name)) for name in OF_TRAINER}}


def canonical(value: Any) -> Any:
    """Lists for tuples, and whole numbers as int."""
    if isinstance(value, dict):
        return {str(key): canonical(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def without(node: Any, names: tuple[str, ...]) -> Any:
    """The node without these keys, at every depth."""
    return {k: without(v, names) for k, v in node.items() if k not in names} if isinstance(node, dict) else node


def digest(content: Any) -> str:
    """8 hex digits of the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def evaluation_name(
    run: str, study: str, *, study_node: Any, sampler: Any, features: Any, which: str, weights: str, data: dict[str, Any],
    precision: str | None = None,
) -> str:  # fmt: skip
    """<run>/<study>-<8 hex>: the folder of an evaluation below logs/evaluate, the same from train.py and evaluate.py.

    `study`: the word; the nodes are resolved. `features` None: the run's own; `data`: what is changed of the run's;
    `precision` as it was asked for by name, None: the run's own.
    """
    content = {
        "study": study_node, "sampler": sampler, "features": without(features, ("shape",)), "which": which,
        "weights": weights, "data": {name: value for name, value in data.items() if value is not None},
    } | ({"precision": precision} if precision else {})  # fmt: skip
    return f"{run}/{study}-{digest(canonical(content))}"


def asked_precision(hardware: dict[str, Any], own: Any = None) -> str | None:
    """The precision that a hardware node asks for by name, TF32 in it; None where that is none but the run's `own`."""
    named = [hardware["precision"]] if hardware["precision"] not in ("auto", own) else []
    return " ".join(named + (["tf32"] if hardware.get("tf32") is True else [])) or None


def first_difference(mine: Any, other: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """(dotted key, mine, other) of the first place in which two nodes differ, in their order; None where they agree."""
    if isinstance(mine, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*mine, *other]):
            here = f"{path}.{key}" if path else key
            if found := first_difference(mine.get(key), other.get(key), here):
                return found
        return None
    return None if mine == other and type(mine) is type(other) else (path, mine, other)


def said(value: Any) -> str:
    """A node by its class, a dotted name by its end, anything else as it is."""
    if isinstance(value, dict) and "_target_" in value:
        value = value["_target_"]
    if isinstance(value, str) and re.fullmatch(r"\w+(\.\w+){2,}", value):
        return value.rsplit(".", 1)[-1]
    return "null" if value is None else str(value)
