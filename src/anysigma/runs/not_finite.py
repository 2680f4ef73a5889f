"""Numbers that are none: never written over good ones, never taken for weights."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

HELD = ("state_dict", "optimizer_states")


class NotFinite(ValueError):
    """Training met numbers that are NaN or infinite; the message is the line for a person."""


def tensors(node: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating tensor of nested dictionaries, lists and tuples, with its dotted name."""
    if isinstance(node, Tensor):
        if node.is_floating_point():
            yield name, node
    elif isinstance(node, Mapping | list | tuple):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from tensors(value, f"{name}.{key}" if name else str(key))


def not_finite(node: Any) -> str | None:
    """The name of the first tensor in it that holds NaN or an infinity, None where all are finite; one wait a device."""
    named = list(tensors(node))
    by_device: dict[torch.device, list[int]] = {}
    for i, (_, tensor) in enumerate(named):
        by_device.setdefault(tensor.device, []).append(i)
    bad = []
    for rows in by_device.values():
        finite = torch.stack([named[i][1].isfinite().all() for i in rows]).tolist()
        bad += [i for i, good in zip(rows, finite, strict=True) if not good]
    return named[min(bad)][0] if bad else None


def hold_finite(checkpoint: Mapping[str, Any]) -> None:
    """Raises NotFinite where weights, their average or the optimiser's moments are not: nothing is saved then."""
    name = not_finite({part: checkpoint[part] for part in HELD if part in checkpoint})
    if name is not None:
        step = checkpoint.get("global_step")
        raise NotFinite(f"step {step}: {name} holds NaN or infinite numbers: not saved, what was saved before stays")


def hold_weights(state: Mapping[str, Tensor], weights: str) -> None:
    """Raises ValueError for weights (`ema` or `raw`) of a checkpoint that hold what is no number."""
    name = not_finite(state)
    if name is not None:
        other = "raw" if weights == "ema" else "ema"
        raise ValueError(
            f"weights={weights}: {name} of the checkpoint holds NaN or infinite numbers, no image comes of it;"
            f" another checkpoint (which=best) or weights={other} may be whole"
        )
