"""Figures of several evaluations beside each other on a page: against S, and in tables."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

from anysigma.report import html
from anysigma.report.against_steps import against_S
from anysigma.report.figures import WAYS, Figure, phrase, said, varying, written
from anysigma.report.ranking import compared, disagreements, remark
from anysigma.report.results import Row
from anysigma.report.verdict import counted, rule

HEADS = {"sigma": "σ", "tau": "τ", "eta": "η", "clip": "clipped"}
BESIDE = (
    "Real images: what as many of them give in place of the generated ones, ± the sd of one draw where there were several."
)
ARROWS = {-1: "↓", 1: "↑"}


def metric_name(row: Row) -> str:
    """A metric's name as a person reads it, the way that is better, and the features it was taken in."""
    way = f'&nbsp;<span class="way" title="{WAYS[row.better]}">{ARROWS[row.better]}</span>' if row.better else ""
    features = f" <small>in {escape(row.features)} features</small>" if row.features else ""
    return html.prose(row.label) + way + features


def shown_value(row: Row) -> list[str]:
    """Value ± standard error, or with its interval, and its anchors, as cells."""
    text, beside = written(row)
    value, sign, error = text.partition(" ± ")
    value, _, ends = value.partition(" (")
    more = f' <span class="pm">± {error}</span>' if sign else f' <span class="pm">({ends}</span>' if ends else ""
    return [f"<b>{value}</b>{more}", html.prose(beside).replace("; ", "<br>")]


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
    """The figures that answer what a reader came for, by study and metric; all, where no study says which those are."""
    if not found:
        return ""
    found = [figure for figure in found if figure.row.key] or found
    metrics = list(dict.fromkeys(figure.row.metric for figure in found))
    runs, groups = {figure.run for figure in found}, {}
    for figure in sorted(found, key=lambda figure: metrics.index(figure.row.metric)):
        words = filter(None, [figure.run if len(runs) > 1 else "", phrase(figure.row.params)])
        cells = [metric_name(figure.row), *shown_value(figure.row), html.prose(", ".join(words))]
        groups.setdefault(html.prose(figure.title), []).append(cells)
    anchored = any(figure.row.anchors for figure in found)
    note = "± one standard error; in brackets a 95 % interval." + (" " + BESIDE if anchored else "")
    columns = ["Figure", "Value", "Real images", "Setting"]
    rows = {title: cells if anchored else [[*c[:2], c[3]] for c in cells] for title, cells in groups.items()}
    body = html.table(columns if anchored else [*columns[:2], columns[3]], rows, note=note)
    return f'<section id="figures"><h2>{title}</h2>{body}</section>\n'


def table(found: Sequence[Figure]) -> str:
    """All figures of a kind: best first where their cards differ in what was set alone, as they came where not."""
    apart, way = disagreements(found, [name for figure in found for name in figure.row.params]), found[0].row.better
    parts = ", ".join(dict.fromkeys(line.split(".")[0].replace("_", " ") for line in apart))
    notes = [f"In their order, not ranked: the cards differ in {escape(parts)}."] if apart and way else []
    places, remarks = [""] * len(found), [""] * len(found)
    if way and not apart:
        found = sorted(found, key=lambda f: (f.row.value is None, -way * (f.row.value or 0)))
        places = [f"{place}. " for place in range(1, len(found) + 1)]
        remarks, said_so = told_apart(found)
        notes += said_so
    shared = found[0].row.beside if len({figure.row.beside for figure in found}) == 1 else ""
    notes += [f"In their place: {html.prose(shared)}."] if shared else []
    lines = [n for n in varying([f.setting for f in found]) if shown(n, found)]
    rows = []
    for place, figure, words in zip(places, found, remarks, strict=True):
        value, beside = shown_value(figure.row)
        setting = [html.prose(said(n, figure.setting.get(n))) for n in lines]
        rows.append([place + escape(figure.run), *setting, value, "" if shared else beside, words])
    title = f"{metric_name(found[0].row)} <small>· {html.prose(found[0].title)}</small>"
    columns = ["Run", *(HEADS.get(n, html.prose(n.replace("_", " "))) for n in lines), "Value", "Real images", ""]
    return table_of(columns, rows, title, " ".join(notes))


def told_apart(found: Sequence[Figure]) -> tuple[list[str], list[str]]:
    """A remark for each figure of a ranking, and how they were come to."""
    order = [("", figure) for figure in found if figure.row.value is not None]
    verdicts = compared(order)
    remarks = [remark(order, place, verdicts) for place in range(len(order))] + [""] * (len(found) - len(order))
    if not verdicts:
        return remarks, []
    made = list(verdicts.values())
    return remarks, [f"Not distinguishable: 0 lies in the {rule(made)}. {counted(made)}"]


def shown(line: str, found: Sequence[Figure]) -> bool:
    """Whether a line that varies gets a column: what was set for the figure, and what the run does not tell by itself."""
    by_run = {figure.run: figure.setting.get(line) for figure in found}
    told = all(by_run[figure.run] == figure.setting.get(line) for figure in found)
    return any(line in f.row.params for f in found) or (line in ("step", "weights", "n", "sets", "seed") and not told)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, note: str) -> str:
    """The table, without those of its last two columns that are empty."""
    last = len(columns) - 2
    shown = [i for i in range(len(columns)) if i < last or any(row[i] for row in rows)]
    return html.table([columns[i] for i in shown], {"": [[row[i] for i in shown] for row in rows]}, title, note)
