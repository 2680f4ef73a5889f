"""What an evaluation takes from a checkpoint, and what it may change of it."""

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from anysigma.compose.config import ConfigError, build, check, plain
from anysigma.diffusion.samplers.base import Sampler
from anysigma.runs.checkpoint import find, load_weights, read
from anysigma.runs.listing import RUNS

if TYPE_CHECKING:
    from anysigma.evaluation.job import Evaluation


def evaluation(cfg: DictConfig, sampler: Sampler) -> "Evaluation":
    """The evaluation of `checkpoint`: its schedule, network, parameterisation and data, checked before they are built."""
    path = find(cfg.checkpoint, cfg.which, RUNS)
    checkpoint = read(path)
    config = checkpoint["config"]
    denoiser, data = config["job"]["module"]["denoiser"], stored_data(config, cfg.data)
    features = stored_features(config, cfg.features)
    check({"denoiser": denoiser, "data": data, "features": features})
    sampler.pairs(build(config["schedule"]).T)
    from anysigma.evaluation.job import Evaluation

    weights = f"ema {config['ema']['decay']}" if cfg.weights == "ema" else "raw"
    return Evaluation(
        denoiser=load_weights(build(denoiser), checkpoint, cfg.weights),
        data=build(data),
        features=build(features),
        hardware=build(cfg.hardware),
        card={"checkpoint": str(path), "step": checkpoint["step"], "schedule": config["schedule"], "weights": weights},
    )


def stored_data(config: dict[str, Any], overrides: DictConfig) -> dict[str, Any]:
    """A stored config's data node with what an evaluation may change: root, batch size, workers."""
    node = dict(config["data"])
    for name, value in overrides.items():
        if value is not None and name in node:
            node[name] = value
        elif value is not None:
            raise ConfigError(f"data.{name}={value}: the run's data has no such setting")
    return node


def stored_features(config: dict[str, Any], chosen: DictConfig | None) -> dict[str, Any]:
    """The features an evaluation asks for, or a run's own, for the shape of the run's images."""
    node = dict(plain(chosen) if chosen else config["features"])
    return {**node, "shape": config["data"]["shape"]} if "shape" in node else node
