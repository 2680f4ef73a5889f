"""study=all: the studies there are, in the order that their YAMLs give."""

import sys
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from anysigma.compose.targets import ConfigError


def all_studies(conf: Path) -> dict[str, Any]:
    """A config of all studies in `conf`/study and in the folder of --config-dir whose YAML has an `order`, by it.

    Made before Hydra starts, so that `study.studies.table.steps=…` and `~study.studies.speed` work as on any other.
    """
    found: dict[str, float] = {}
    for folder in (conf, *own_folder()):
        for path in sorted((folder / "study").glob("*.yaml")):
            if (order := order_of(path)) is not None:
                found[path.stem] = order
    names = sorted(found, key=lambda name: (found[name], name))
    studies = [{f"/study@studies.{name}": name} for name in names]
    return {"defaults": [*studies, "_self_"], "_target_": "anysigma.studies.all.All", "order": None}


def order_of(path: Path) -> float | None:
    """The `order` of a study's YAML; None where it has none. Raises ConfigError where it is no number."""
    order = OmegaConf.to_container(OmegaConf.load(path), resolve=False).get("order")
    if order is not None and (isinstance(order, bool) or not isinstance(order, int | float)):
        raise ConfigError(f"{path}: order={order}: a number, its place in study=all, or null")
    return order


def own_folder() -> list[Path]:
    """What --config-dir names on the command line."""
    named = get_args_parser().parse_known_args(sys.argv[1:])[0].config_dir
    return [Path(named)] if named else []
