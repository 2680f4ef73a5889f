"""A checkpoint opened: its stored config is data, held to what may be built here before a part of it is."""

from pathlib import Path
from typing import Any

from anysigma.compose.config import build, check
from anysigma.compose.targets import ConfigError
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.base import Sampler
from anysigma.evaluation.bounded import network
from anysigma.evaluation.job import Evaluation
from anysigma.machine.hardware import Hardware
from anysigma.runs.checkpoint import load_weights, read, weights_of

TAKEN = ("schedule", "model", "parameterization", "data", "features")
AT_MOST = 10_000  # parts of a config
ELSEWHERE = ("root", "download", "cache", "weights_path")  # of the machine that trained; not this one's


def opened(
    path: Path, sampler: Sampler, hardware: Hardware, *, weights: str = "ema",
    features: dict[str, Any] | None = None, data: dict[str, Any] | None = None,
) -> Evaluation:  # fmt: skip
    """What evaluates a checkpoint: five nodes of its config, checked, then built; the rest of it is never looked at.

    `features`, `data`: a node with a `_target_` in place of the run's own, or what to change of that one (weights_path;
    root, download). Raises ValueError, in one line, for a checkpoint that asks for more.
    """
    checkpoint = read(path)
    nodes = stored(checkpoint["config"], features or {}, data or {})
    q, parameterization = GaussianProcess(build(nodes["schedule"])), build(nodes["parameterization"])
    sampler.check(q, parameterization)
    denoiser = Denoiser(network(nodes["model"], weights_of(checkpoint, weights)), q, parameterization)
    config, data_hash = checkpoint["config"], checkpoint.get("data_hash")
    if not isinstance(data_hash, str | None):
        raise ConfigError(f"checkpoint {path}: its data_hash is none")
    card = {"checkpoint": str(path), "step": checkpoint["step"], "schedule": nodes["schedule"], "weights": weights}
    if weights == "ema" and isinstance(ema := config.get("ema"), dict):
        card["weights"] = f"ema {ema.get('decay')}"
    return Evaluation(
        denoiser=load_weights(denoiser, checkpoint, weights),
        data=build(nodes["data"]),
        features=build(nodes["features"]),
        hardware=hardware,
        record=config.get("hardware"),
        card=card,
        data_hash=data_hash,
    )


def stored(config: dict[str, Any], features: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The five nodes, without what belongs to another machine and with what is asked for in its place; checked."""
    if lacking := [name for name in TAKEN if not isinstance(config.get(name), dict) or "_target_" not in config[name]]:
        raise ConfigError(f"the checkpoint's config holds no {lacking[0]}")
    if not_small([config[name] for name in TAKEN]):
        raise ConfigError(f"the checkpoint's config has more than {AT_MOST} parts: it is none of ours")
    try:
        nodes = {name: elsewhere(config[name]) for name in TAKEN}
        nodes["features"] = features if "_target_" in features else changed(nodes["features"], features)
        nodes["data"] = data if "_target_" in data else changed(nodes["data"], data)
        if "shape" in nodes["features"]:
            nodes["features"] = {**nodes["features"], "shape": nodes["data"].get("shape")}
        check(nodes)
    except RecursionError:
        raise ConfigError("the checkpoint's config is nested too deeply to be one of ours") from None
    return nodes


def not_small(node: Any) -> bool:
    """Whether there are more than AT_MOST parts, counted as often as they are referred to."""
    waiting, seen = [node], 0
    while waiting and seen <= AT_MOST:
        one = waiting.pop()
        seen += 1
        waiting += list(one.values() if isinstance(one, dict) else one if isinstance(one, list | tuple) else ())[:AT_MOST]
    return seen > AT_MOST


def elsewhere(node: Any) -> Any:
    """The node without places on the disk: each falls back to its constructor's default."""
    if isinstance(node, list):
        return [elsewhere(one) for one in node]
    return {k: elsewhere(v) for k, v in node.items() if k not in ELSEWHERE} if isinstance(node, dict) else node


def changed(node: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The node with what is not null of the changes. Whether it has such a setting, its signature tells."""
    return {**node, **{key: value for key, value in changes.items() if value is not None}}
