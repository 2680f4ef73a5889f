"""A node of a config held to the signature of its target: names, and but for library targets types."""

import difflib
import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

from anysigma.compose.targets import WORDS, ConfigError, locate

LIBRARIES = ("torch", "lightning")  # their annotations say more than a YAML value can be


def check_node(key: str, node: dict[str, Any]) -> None:
    """Raises ConfigError with key, target and near spellings where an argument is unknown, lacking or of another type."""
    target = locate(node["_target_"], key)
    parameters = inspect.signature(target).parameters
    given = node.keys() - WORDS
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for name in sorted(given - parameters.keys()):
            raise ConfigError(f"{key}.{name}: {node['_target_']} takes no such argument{near(name, parameters)}")
    missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if lacking := [n for n in missing if n not in given and not node.get("_partial_")]:
        raise ConfigError(f"{key}: {node['_target_']} also needs {', '.join(lacking)}")
    if node["_target_"].split(".")[0] not in LIBRARIES:
        hints = hints_of(target)
        for name in sorted(given & hints.keys()):
            if not fits(node[name], hints[name]):
                said = f"{key}.{name}={node[name]!r}"
                raise ConfigError(
                    f"{said}: {node['_target_']} wants {_readable(hints[name])}, not {type(node[name]).__name__}"
                )


def hints_of(target: Any) -> dict[str, Any]:
    """The types of a constructor's arguments; none where a name of them is known to the type checker alone."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:
        return {}


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
