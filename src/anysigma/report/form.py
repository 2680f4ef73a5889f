"""The form of a results.json: a stranger may have written it, so it is held to this before anything is made of it."""

from dataclasses import dataclass
from typing import Any

DEEP = 50  # levels of lists and mappings
LARGEST = 1 << 62  # of whole numbers: the next step, a float's, has no digits left


@dataclass(frozen=True)
class Fields:
    """A mapping with the keys of `needed` and perhaps those of `may`; others only where `more`."""

    needed: dict[str, Any]
    may: dict[str, Any]
    more: bool = False


@dataclass(frozen=True)
class Each:
    """A mapping of any keys to values of one form."""

    form: Any


@dataclass(frozen=True)
class OneOf:
    """A word of a few."""

    words: tuple[Any, ...]


class Number:
    """A float or a whole number, no bool."""


class Count:
    """A whole number of at least 0."""


class Positive:
    """A number of at least 0."""


class Pair:
    """Two numbers."""


def held(results: Any) -> dict[str, Any]:
    """The content of an evaluation's or a run's results.json, with texts that no terminal obeys.

    Raises ValueError, with the first place that is otherwise, where it is neither.
    """
    results = shown(results)
    evaluation = isinstance(results, dict) and "sections" in results
    if (wrong := first(results, EVALUATION if evaluation else RUN, "")) is not None:
        raise ValueError(wrong)
    for section in results["sections"] if evaluation else ():
        if any(len(row) != len(table["columns"]) for table in section["tables"] for row in table["rows"]):
            raise ValueError(f"sections: a table of {section['study'][:50]} has rows of another length")
        if any(uneven(curve) for plot in section["plots"].values() for curve in plot["curves"]):
            raise ValueError(f"sections: a curve of {section['study'][:50]} has not as many x as y")
    return results


def uneven(curve: dict[str, Any]) -> bool:
    """Whether there are not as many x as y, and errors where there are any."""
    return len({len(curve[name]) for name in ("x", "y", "error") if curve.get(name) is not None}) > 1


def shown(node: Any, depth: int = 0) -> Any:
    """The node with every character escaped that steers a terminal or cannot be written, but for line feeds and tabs.

    Raises ValueError for nesting without end.
    """
    if depth > DEEP:
        raise ValueError(f"nested more than {DEEP} levels deep")
    if isinstance(node, dict):
        return {shown(key): shown(value, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [shown(value, depth + 1) for value in node]
    if not isinstance(node, str) or node.isprintable():
        return node
    return "".join(c if c.isprintable() or c in "\n\t\xa0" else c.encode("unicode_escape").decode() for c in node)


def first(value: Any, form: Any, path: str) -> str | None:
    """What is first found to be otherwise, with its dotted key; None where nothing is."""
    if isinstance(form, Fields | Each):
        return _mapping(value, form, path)
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{path}: no list"
        return next((one for i, v in enumerate(value) if (one := first(v, form[0], f"{path}[{i}]"))), None)
    if isinstance(form, tuple):
        found = [first(value, one, path) for one in form]
        return None if None in found else found[0]
    if isinstance(form, OneOf):
        good = type(value) in map(type, form.words) and value in form.words
        return None if good else f"{path}: none of {', '.join(map(str, form.words))}"
    return None if _plain(value, form) else f"{path}: no {form.__name__.lower()}"


def _mapping(value: Any, form: Fields | Each, path: str) -> str | None:
    if not isinstance(value, dict):
        return f"{path or 'it'}: no mapping"
    forms = dict.fromkeys(value, form.form) if isinstance(form, Each) else form.needed | form.may
    for name in () if isinstance(form, Each) else form.needed:
        if name not in value:
            return f"{path or 'it'}: no {name}"
    for name, one in value.items():
        here = f"{path}.{name[:50]}".strip(".")
        if name in forms:
            if wrong := first(one, forms[name], here):
                return wrong
        elif not form.more:
            return f"{here}: unknown"
    return None


def _plain(value: Any, form: Any) -> bool:
    if form in (Number, Count, Positive):
        if isinstance(value, bool) or not isinstance(value, int if form is Count else int | float):
            return False
        return (isinstance(value, float) or abs(value) <= LARGEST) and (form is Number or value >= 0)
    if form is Pair:
        return isinstance(value, list) and len(value) == 2 and all(_plain(one, Number) for one in value)
    return isinstance(value, form)


NONE = type(None)
NUMBER = (Number, NONE)
CARD = Fields({}, {"checkpoint": (str, NONE)}, more=True)
ANCHOR = Fields({"value": Number}, {"sd": NUMBER, "error": NUMBER, "draws": Count})
ROW = Fields(
    {"study": str, "metric": str, "value": NUMBER, "card": str, "anchors": Each(ANCHOR)},
    {"error": NUMBER, "n": (Count, NONE), "params": Fields({}, {}, more=True), "better": OneOf((-1, 0, 1)), "sets": [Number],
     "interval": (Pair, NONE), "label": str, "features": str, "key": bool},
    more=True,
)  # fmt: skip
CURVE = Fields(
    {"label": str, "x": [Number], "y": [Number]},
    {"error": ([Positive], NONE), "style": OneOf(("-", "--", ":", "-.", "."))},
)
PLOT = Fields({"caption": str, "x": str, "y": str, "curves": [CURVE]}, {"log_x": bool, "log_y": bool})
TABLE = Fields({"title": str, "columns": [str], "rows": [[str]]}, {"note": str})
SECTION = Fields(
    {"study": str, "card": CARD, "lines": [str], "tables": [TABLE], "plots": Each(PLOT),
     "pictures": Each(Fields({"file": str, "caption": str}, {}))},
    {"title": str, "about": str}, more=True,
)  # fmt: skip
STATED = {"command": str, "versions": Fields({}, {}, more=True), "step": Count, "weights_sha256": str}
EVALUATION = Fields({"cards": Each(CARD), "rows": [ROW], "sections": [SECTION]}, STATED, more=True)
RUN = Fields({"lines": [str], "step": Count}, {"evaluation": str}, more=True)
