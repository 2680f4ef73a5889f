"""Experiments: a file of words for one of the two programs, and refused by the other."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from yaml import YAMLError

from anysigma.compose.all_studies import own_folder
from anysigma.compose.config import EvaluateConfig, TrainConfig
from anysigma.compose.targets import ConfigError

ROOTS = {"train": TrainConfig, "evaluate": EvaluateConfig}


def hold_to_program(conf: str, words: Sequence[str]) -> None:
    """Raises ConfigError for `experiment=NAME` of the other program; `conf`: the root config's path, without .yaml."""
    folder, program = Path(conf).parent, Path(conf).name
    for word in words:
        if match := re.fullmatch(r"experiment=([\w,-]+)", word):
            for name in match[1].split(","):
                path = next((p for f in (folder, *own_folder()) if (p := f / "experiment" / f"{name}.yaml").is_file()), None)
                if path and program not in (own := programs(path)):
                    raise ConfigError(f"experiment={name} is for {' and '.join(f'{one}.py' for one in own) or 'no program'}")


def programs(path: Path) -> list[str]:
    """The programs whose root config has every key and group that the experiment sets."""
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        named = [str(key) for one in node.pop("defaults", None) or [] if isinstance(one, dict) for key in one]
    except (OSError, ValueError, AttributeError, TypeError, YAMLError):  # no mapping: Hydra says it better
        return list(ROOTS)
    groups = {re.split(r"[@/]", re.sub(r"^((optional|override) )*/?", "", key))[0] for key in named}
    asked = {*node, *groups} - {"hydra"}
    return [name for name, root in ROOTS.items() if asked <= root.__dataclass_fields__.keys()]
