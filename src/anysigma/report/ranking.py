"""Figures of several evaluations in order, best first; refused where their cards say that they cannot be compared."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anysigma.metrics.statistics import Difference
from anysigma.report.figures import WAYS, Figure, Kind, agreed, collect, figures, phrase, said, varying, written
from anysigma.report.results import Table
from anysigma.report.verdict import counted, difference, rule, same_noise

# What one compares. Every other line of the card is the protocol and has to agree.
FREE = ("checkpoint", "step", "schedule", "weights_sha256", "sampler", "S", "sigma", "eta", "sets", "fewer_sets",
        "memory_format")  # fmt: skip
HIDDEN = ("weights_sha256", "schedule", "checkpoint")


def compare(paths: Sequence[str], across: Sequence[str] = ()) -> str:
    """Rankings of every (study, metric) that all `paths` have, best first.

    `across` names card lines, or groups of them, that may differ beside those of `FREE`. Raises ValueError, one line,
    where other lines differ or the paths have no figure in common.
    """
    sources = _sources(paths)
    common = [kind for kind in next(iter(sources.values())) if all(kind in found for found in sources.values())]
    if not common:
        has = (f"{name} has {', '.join(sorted({m for _, m in found})) or 'none'}" for name, found in sources.items())
        raise ValueError(f"compare: no figure in common: {'; '.join(has)}")
    tables = []
    for kind in common:
        tables += _ranked(kind, {name: found[kind] for name, found in sources.items()}, tuple(across))
    return "\n\n".join(table.text() for table in tables)


def protocol(figure: Figure, across: Sequence[str] = ()) -> dict[str, Any]:
    """The lines of a figure's card that have to agree before it is ranked."""
    free = (*FREE, *across)
    return {name: value for name, value in figure.setting.items() if value is not None and not _named(name, free)}


def disagreements(found: Sequence[Figure], across: Sequence[str] = ()) -> list[str]:
    """Names of the protocol's lines in which figures differ."""
    return varying([protocol(figure, across) for figure in found])


def _named(name: str, names: Sequence[str]) -> bool:
    return name in names or name.split(".")[0] in names


def _sources(paths: Sequence[str]) -> dict[str, dict[Kind, list[Figure]]]:
    if len(paths) < 2:
        raise ValueError("compare=[A,B]: two evaluations or more are needed")
    sources = {}
    for path, name in zip(paths, names(paths), strict=True):
        found = defaultdict(list)
        for figure in figures(collect(path)):
            if figure.row.value is not None:
                found[figure.kind].append(figure)
        sources[name] = found
    agreed([figure for found in sources.values() for some in found.values() for figure in some])
    return sources


def names(paths: Sequence[str]) -> list[str]:
    """The paths without what they all begin with, and without results.json."""
    parts = [(p.parent if p.name == "results.json" else p).parts for p in map(Path, paths)]
    shared = 0
    while all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    short = ["/".join(p[shared:]) for p in parts]
    return [name if short.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(short, 1)]


def _ranked(kind: Kind, sources: dict[str, list[Figure]], across: tuple[str, ...]) -> list[Table]:
    """One table for each protocol that every source has; ValueError where there is none."""
    by_protocol = defaultdict(list)
    for name, found in sources.items():
        for figure in found:
            by_protocol[repr(sorted(protocol(figure, across).items(), key=str))].append((name, figure))
    whole = [group for group in by_protocol.values() if {name for name, _ in group} == set(sources)]
    if not whole:
        raise ValueError(_refusal(kind, sources, across))
    left_out = sum(map(len, by_protocol.values())) - sum(map(len, whole))
    notes = [f"{left_out} more without a counterpart of the same protocol are left out."] if left_out else []
    notes += [f"Ranked across {', '.join(across)}."] if across else []
    apart = varying([protocol(group[0][1], across) for group in whole])
    which = [phrase({line: group[0][1].setting.get(line) for line in apart}) for group in whole]
    return [ranking(group, words, notes) for group, words in zip(whole, which, strict=True)]


def _refusal(kind: Kind, sources: dict[str, list[Figure]], across: tuple[str, ...]) -> str:
    """The nearest pair of figures from two sources without a protocol in common, and the lines that part them."""
    (first, mine), *others = sources.items()
    pairs = {name: [(a, b) for a in mine for b in theirs] for name, theirs in others}
    nearest = {name: min(found, key=lambda pair: len(disagreements(pair, across))) for name, found in pairs.items()}
    name = max(nearest, key=lambda one: len(disagreements(nearest[one], across)))
    lines = disagreements(nearest[name], across)
    if not lines:
        return f"compare: {kind[0]} {kind[1]}: no protocol that all of {', '.join(sources)} share"
    a, b = (protocol(figure, across) for figure in nearest[name])
    apart = "; ".join(f"{line}: {a.get(line)} | {b.get(line)}" for line in lines)
    return (
        f"compare: {kind[0]} {kind[1]}: the cards of {first} | {name} differ in {apart};"
        f" across=[{','.join(dict.fromkeys(line.split('.')[0] for line in lines))}] ranks them all the same"
    )


def ranking(group: Sequence[tuple[str, Figure]], which: str = "", notes: Sequence[str] = ()) -> Table:
    """Figures of a kind, best first; each beside the first above that it cannot be told from.

    `which`: what sets their protocol apart from that of others.
    """
    first = group[0][1]
    way = first.row.better
    order = sorted(group, key=lambda pair: -way * pair[1].row.value) if way else list(group)
    # A run's step or schedule tells nothing beside its folder's name, unless they differ.
    lines = [n for n in varying([f.setting for _, f in order]) if not _named(n, HIDDEN) or n in order[0][1].row.params]
    verdicts = compared(order) if way else {}
    body = [
        [
            str(place) if way else "-", name, *(said(line, figure.setting.get(line)) for line in lines),
            *written(figure.row), remark(order, place - 1, verdicts) if way else "",
        ]
        for place, (name, figure) in enumerate(order, 1)
    ]  # fmt: skip
    how = WAYS[way] + ("" if way else ": not ranked")
    made = list(verdicts.values())
    notes = [f"Not distinguishable: 0 lies in the {rule(made)}. {counted(made)}", *notes] if way else notes
    title = ", ".join(filter(None, [f"{first.row.name} · {first.title}", which, how]))
    return Table(title, ["", "", *lines, "value", "real images", ""], body, " ".join(notes))


def compared(order: Sequence[tuple[str, Figure]]) -> dict[tuple[int, int], Difference | None]:
    """Every figure against every one above it, by their places."""
    found = {}
    for place, (_, figure) in enumerate(order):
        for above, (_, other) in enumerate(order[:place]):
            noise = same_noise(figure.setting, other.setting)
            found[place, above] = difference(figure.row, other.row, same_noise=noise)
    return found


def remark(order: Sequence[tuple[str, Figure]], place: int, verdicts: Mapping[tuple[int, int], Difference | None]) -> str:
    """What keeps a figure from being told from one above it."""
    row = order[place][1].row
    for above, (_, figure) in enumerate(order[:place]):
        verdict = verdicts[place, above]
        if row.value == figure.row.value:
            return f"equal to {above + 1}"
        if verdict is not None and not verdict.distinct:
            return f"not distinguishable from {above + 1}"
    if not place or any(verdicts[place, above] is not None for above in range(place)):
        return ""
    return "one set: no verdict" if row.sets else "no verdict"
