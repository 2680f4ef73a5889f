"""Figures of several evaluations beside each other on a page: against S, and in tables."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from anysigma.report import html
from anysigma.report.against_steps import against_S
from anysigma.report.figures import WAYS, Figure, number, phrase, said, varying, written
from anysigma.report.ranking import disagreements
from anysigma.report.results import Row

HEADS = {"sigma": "σ", "tau": "τ", "eta": "η", "clip": "clipped"}
ARROWS = {-1: "↓", 1: "↑"}


def metric_name(row: Row) -> str:
    """A metric's name as a person reads it, the way that is better, and the features it was taken in."""
    way = f'&nbsp;<span class="way" title="{WAYS[row.better]}">{ARROWS[row.better]}</span>' if row.better else ""
    features = f" <small>in {escape(row.features)} features</small>" if row.features else ""
    return html.prose(row.label) + way + features


def shown_value(row: Row) -> list[str]:
    """Value ± standard error, floor ± spread, as cells."""
    (value, _, error), (floor, _, spread) = (text.partition(" ± ") for text in written(row))
    return [f"<b>{value}</b>{spread_of(error)}", f"{floor}{spread_of(spread)}"]


def spread_of(error: str) -> str:
    """± error, smaller, where there is one."""
    return f' <span class="pm">± {error}</span>' if error else ""


def comparison(found: Sequence[Figure], numbers: Iterable[int]) -> str:
    """Each metric that several evaluations have, against S where several were tried and as a table a study; the rest."""
    metrics, alone, text = defaultdict(list), [], ""
    for figure in found:
        metrics[figure.row.metric].append(figure)
    for rows in metrics.values():
        plots = "".join(html.plot(one, f"p{next(numbers)}") for one in against_S(rows)) if evaluations(rows) > 1 else ""
        text += f'<div class="figures">{plots}</div>\n' if plots else ""
        for study in dict.fromkeys(figure.study for figure in rows):
            mine = [figure for figure in rows if figure.study == study]
            if evaluations(mine) > 1:
                text += table(mine)
            else:
                alone += mine
    over = f'<section id="compared"><h2>Side by side</h2>{text}</section>\n' if text else ""
    return over + key_figures(alone, "Other figures" if text else "Key figures")


def evaluations(found: Sequence[Figure]) -> int:
    """How many evaluations they come from."""
    return len({figure.path for figure in found})


def key_figures(found: Sequence[Figure], title: str = "Key figures") -> str:
    """All figures by study and metric, in one table."""
    if not found:
        return ""
    metrics = list(dict.fromkeys(figure.row.metric for figure in found))
    runs, groups = {figure.run for figure in found}, {}
    for figure in sorted(found, key=lambda figure: metrics.index(figure.row.metric)):
        words = filter(None, [figure.run if len(runs) > 1 else "", phrase(figure.row.params)])
        cells = [metric_name(figure.row), *shown_value(figure.row), html.prose(", ".join(words))]
        groups.setdefault(html.prose(figure.title), []).append(cells)
    floors = " Floor: what as many real images reach in place of the generated ones, ± its spread."
    note = "± one standard error." + (floors if any(figure.row.floor is not None for figure in found) else "")
    body = html.table(["Figure", "Value", "Floor", "Setting"], groups, note=note)
    return f'<section id="figures"><h2>{title}</h2>{body}</section>\n'


def table(found: Sequence[Figure]) -> str:
    """All figures of a kind: best first where their cards differ in what was set alone, as they came where not."""
    apart, way = disagreements(found, [name for figure in found for name in figure.row.params]), found[0].row.better
    if way and not apart:
        found = sorted(found, key=lambda f: (f.row.value is None, -way * (f.row.value or 0)))
    lines = [n for n in varying([f.setting for f in found]) if shown(n, found)]
    rows = [[escape(f.run), *(html.prose(said(n, f.setting.get(n))) for n in lines), *shown_value(f.row)] for f in found]
    title = f"{metric_name(found[0].row)} <small>· {html.prose(found[0].title)}</small>"
    parts = ", ".join(dict.fromkeys(line.split(".")[0].replace("_", " ") for line in apart))
    note = f"In their order, not ranked: the cards differ in {escape(parts)}." if apart and way else ""
    return table_of(
        ["Run", *(HEADS.get(n, html.prose(n.replace("_", " "))) for n in lines), "Value", "Floor"], rows, title, note
    )


def shown(line: str, found: Sequence[Figure]) -> bool:
    """Whether a line that varies gets a column: what was set for the figure, and what the run does not tell by itself."""
    by_run = {figure.run: figure.setting.get(line) for figure in found}
    told = all(by_run[figure.run] == figure.setting.get(line) for figure in found)
    return any(line in f.row.params for f in found) or (line in ("step", "weights", "n", "sets", "seed") and not told)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, note: str) -> str:
    """The table, without its last column where that is empty."""
    width = len(columns) if any(row[-1] != number(None) for row in rows) else -1
    return html.table(columns[:width], {"": [row[:width] for row in rows]}, title, note)
