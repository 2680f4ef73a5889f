"""What may be built: the targets that conf/ and a person's own folders of YAML name, and nothing else."""

import importlib
import importlib.resources
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CONF = Path(__file__).parents[3] / "conf"
WORDS = {"_target_", "_partial_"}  # what a node may say beside its arguments
HIDDEN = {"_args_", "_recursive_", "_convert_"}  # of `instantiate`: nothing of ours needs them
ANY_GROUP = ("study", "callbacks")  # their parts may come from every other group
WHOLE = ("experiment", "sweep")  # files that hold pieces of several groups, by root key
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class ConfigError(ValueError):
    """Bad input, said in one line."""


class Named(NamedTuple):
    """A target as a YAML names it: its dotted name, and whether its arguments may be left for later."""

    target: str
    partial: bool


# study=all is made of the studies there are (all_studies.py), so no file names it.
GENERATED = {"study": {Named("anysigma.studies.all.All", False)}}


@dataclass
class Allowed:
    """`groups`: what the YAMLs of each group and its subgroups name; `own`: what train.yaml itself names, by its path;
    `references`: the paths of train.yaml at which another node stands, and that one's path.
    """

    groups: dict[str, set[Named]] = field(default_factory=lambda: defaultdict(set))
    own: dict[str, Named] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    def at(self, path: str) -> set[Named]:
        """What may stand at a dotted key."""
        inside = [at for at in self.references if path == at or path.startswith((f"{at}.", f"{at}["))]
        if inside:
            at = max(inside, key=len)
            path = self.references[at] + path[len(at) :]
        group = re.split(r"[.\[]", path)[0]
        if group in ANY_GROUP:
            return set().union(*self.groups.values())
        return self.groups[group] | ({self.own[path]} if path in self.own else set())

    def require(self, node: dict[str, Any], path: str) -> None:
        """Raises ConfigError unless the node at `path` may be built there."""
        named = Named(str(node["_target_"]), node.get("_partial_", False) is True)
        if not isinstance(node.get("_partial_", False), bool):
            raise ConfigError(f"{path}._partial_: true or false")
        if hidden := sorted(HIDDEN & node.keys()):
            raise ConfigError(f"{path}.{hidden[0]}: only _target_ and _partial_ may stand beside a target's arguments")
        if named in self.at(path):
            return
        known = any(named.target == one.target for group in self.groups.values() for one in group)
        where = "belongs elsewhere" if known else "is named by no YAML of conf/"
        own = "; a class of your own needs its YAML in a folder named by --config-dir" if not known else ""
        partial = " with _partial_" if named.partial else " without _partial_" if self._only_partial(named) else ""
        raise ConfigError(f"{path}._target_: {named.target[:200]!r}{partial} {where}{own}")

    def _only_partial(self, named: Named) -> bool:
        every = set().union(*self.groups.values())
        return named not in every and named._replace(partial=True) in every


def allowed(places: Iterable[Path] | None = None) -> Allowed:
    """What the YAMLs in `places` name, by default in all that this command composes from."""
    return _allowed(tuple(sources() if places is None else places))


@lru_cache
def _allowed(places: tuple[Path, ...]) -> Allowed:
    found = Allowed()
    for name, targets in GENERATED.items():
        found.groups[name] |= targets
    for place in places:
        for path in sorted(place.rglob("*.yaml")):
            _read(path, place, found)
    return found


def sources() -> list[Path]:
    """Every folder of YAML that the running command composes from: conf/, --config-dir, hydra.searchpath."""
    if not HydraConfig.initialized():
        return [CONF]
    listed = [(one.schema, one.path) for one in HydraConfig.get().runtime.config_sources if one.provider != "hydra"]
    packages = [Path(str(importlib.resources.files(path))) for schema, path in listed if schema == "pkg"]
    return [Path(path) for schema, path in listed if schema == "file"] + packages


def _read(path: Path, place: Path, found: Allowed) -> None:
    """Add what one file names."""
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    parts = path.relative_to(place).parts
    if not isinstance(content, dict):
        return
    inherits = "defaults" in content  # then `_partial_` may come from another file
    for key, value in content.items() if len(parts) == 1 or parts[0] in WHOLE else [(parts[0], content)]:
        for at, node in nodes(value, str(key)):
            named = Named(str(node["_target_"]), bool(node.get("_partial_", False)))
            if len(parts) == 1:
                found.own[at] = named
            else:
                found.groups[str(key)] |= {named, named._replace(partial=named.partial or inherits)}
        if len(parts) == 1:
            found.references |= dict(references(value, str(key)))


def nodes(node: Any, path: str) -> Iterator[tuple[str, dict]]:
    """Every dictionary with a `_target_`, with its dotted key, outside in."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from nodes(value, f"{path}[{i}]")


def references(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every place that is nothing but `${…}`, with the path it refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from references(value, f"{path}.{key}")
    elif isinstance(node, str) and (match := REFERENCE.fullmatch(node)):
        yield path, match[1]


def locate(name: str, key: str) -> Any:
    """The object of a dotted name that may be built. Raises ConfigError where there is none."""
    parts = name.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:split])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
                raise
            continue
        for part in parts[split:]:
            found = getattr(found, part, None)
        if callable(found):
            return found
        break
    raise ConfigError(f"{key}._target_: {name} names nothing that can be built")
