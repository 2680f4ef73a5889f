"""Evaluations as one page that opens without a network: summary, figures, pictures, cards, how it was made."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from anysigma.machine.writing import written
from anysigma.report import html
from anysigma.report.figures import Collected, collect, figures, flat, phrase, run_of, said, titled, varying
from anysigma.report.side_by_side import comparison, key_figures

__all__ = ["collect", "page", "write_report"]

SETTING = ("step", "weights", "sampler", "S", "sigma", "tau", "clip", "n", "seed", "variance")
FACTS = {
    "checkpoint": "Checkpoint", "step": "Step", "weights": "Weights", "schedule": "Schedule", "reference": "Reference",
    "features": "Features", "precision": "Precision",
}  # fmt: skip


def write_report(folder: Path, collected: Collected | None = None) -> Path:
    """`folder`/report.html over the evaluations, by default the one in the folder; written aside and renamed."""
    path = Path(folder) / "report.html"
    text = page(collected if collected is not None else collect(str(Path(folder) / "results.json")))
    with written(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def page(results: Collected) -> str:
    """The page over one evaluation or several, each with the path of its results.json."""
    if not results:
        raise ValueError("a report needs at least one evaluation")
    numbers, many = count(1), len(results) > 1
    found = figures(results)
    over = comparison(found, numbers) if many else key_figures(found)
    studies = list(dict.fromkeys(section["study"] for _, content in results for section in content["sections"]))
    body = [over, *(study(name, results, numbers) for name in studies), made(results)]
    title = heading(results)
    return html.document(f"{title} · anysigma", opening(title, results) + contents("".join(body)) + "".join(body))


def heading(results: Collected) -> str:
    """The run, or how many of them."""
    cards = [card for _, content in results for card in cards_of(content)]
    runs = list(dict.fromkeys(run_of(card.get("checkpoint")) for card in cards if card.get("checkpoint")))
    if len(runs) == 1:
        return runs[0]
    names = {titled(section) for _, content in results for section in content["sections"]}
    return f"{len(runs)} runs compared" if runs else ", ".join(sorted(names)) or "Evaluation"


def cards_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cards of all sections, then those of all rows."""
    return [card for card in (*(s["card"] for s in content["sections"]), *content["cards"].values()) if card]


def opening(title: str, results: Collected) -> str:
    """The title, and of one evaluation what was evaluated."""
    head = f'<header><p class="kicker">anysigma · evaluation</p><h1>{escape(title)}</h1>'
    if len(results) > 1:
        return f'{head}<p class="lead">{len(results)} evaluations on one page.</p></header>\n{evaluated(results)}'
    known: dict[str, Any] = {}
    for card in cards_of(results[0][1]):
        known = {**card, **known}
    facts = {name: fact(known[line]) for line, name in FACTS.items() if line in known}
    if "n" in known:
        facts["Images"] = f"{known['n']} a set" + (f", {known['sets']} sets" if "sets" in known else "")
    return f"{head}</header>\n{html.pairs(facts, 'facts') if facts else ''}"


def evaluated(results: Collected) -> str:
    """The checkpoints of several evaluations, with what was done with each."""
    studies: dict[tuple[str, ...], dict[str, None]] = {}
    for path, content in results:
        for one in content["sections"]:
            known = [fact(one["card"].get(line)) for line in ("step", "weights")]
            studies.setdefault((evaluation(path, one["card"]), *known), {})[titled(one)] = None
    rows = [[*map(escape, what), html.prose(", ".join(done))] for what, done in studies.items()]
    return html.table(["Run", "Step", "Weights", "Studies"], {"": rows})


def fact(value: Any) -> str:
    """A card's line in short: an object by its name and its most important arguments."""
    if isinstance(value, Mapping) and isinstance(value.get("_target_"), str):
        arguments = ", ".join(
            f"{k} = {said(k, v)}" for k, v in value.items() if k != "_target_" and not isinstance(v, Mapping)
        )
        return f"{value['_target_'].split('.')[-1]}{f' ({arguments})' if arguments else ''}"
    return said("", value)


def contents(body: str) -> str:
    """Links to the headings of the body."""
    links = re.findall(r'<section id="([^"]+)"><h2>(.*?)</h2>', body)
    items = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in links)
    return f'<nav aria-label="Contents"><ol>{items}</ol></nav>\n'


def study(name: str, results: Collected, numbers: Iterable[int]) -> str:
    """All that the evaluations found in one study, each under its own heading where there are several."""
    having = [(p, c, mine) for p, c in results if (mine := [s for s in c["sections"] if s["study"] == name])]
    first = having[0][2][0]
    lead = f'<p class="lead">{html.prose(first["about"])}</p>' if first.get("about") else ""
    text = f'<section id="study-{escape(name)}"><h2>{html.prose(titled(first))}</h2>{lead}\n'
    for (path, content, mine), name_here in zip(having, headings([(p, mine) for p, _, mine in having]), strict=True):
        text += f"<h3>{name_here}</h3>\n" if len(results) > 1 else ""
        text += "".join(section(one, path.parent, numbers) for one in mine) + card(name, content, mine)
    return text + "</section>\n"


def headings(having: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]]) -> list[str]:
    """The run and what sets an evaluation apart from the others, with its folder where that is not enough."""
    settings = [flat(mine[0]["card"]) for _, mine in having]
    apart = [line for line in varying(settings) if line in SETTING]
    names = []
    for (path, _), setting in zip(having, settings, strict=True):
        words = phrase({line: setting[line] for line in apart if setting.get(line) is not None})
        names.append(html.prose(" · ".join(filter(None, [evaluation(path, setting), words]))))
    folders = [f" <small>{escape(path.parent.name)}</small>" for path, _ in having]
    return [name + (folder if names.count(name) > 1 else "") for name, folder in zip(names, folders, strict=True)]


def evaluation(path: Path, card: Mapping[str, Any]) -> str:
    """What an evaluation is called among others."""
    return run_of(card.get("checkpoint")) or path.parent.name


def section(one: Mapping[str, Any], folder: Path, numbers: Iterable[int]) -> str:
    """Lines, tables, plots, pictures of one result."""
    lines = "".join(f"<li>{html.prose(line)}</li>" for line in one["lines"])
    tables = "".join(
        html.table(
            [html.prose(column) for column in table["columns"]],
            {"": [[html.prose(cell) for cell in row] for row in table["rows"]]},
            html.prose(table["title"]),
            html.prose(table.get("note", "")),
        )
        for table in one["tables"]
    )
    drawn = "".join(html.plot(facts, f"p{next(numbers)}") for facts in one["plots"].values())
    shown = "".join(html.picture(folder / Path(p["file"]).name, p["caption"]) for p in one["pictures"].values())
    figures = f'<div class="figures">{drawn}{shown}</div>\n' if drawn or shown else ""
    return (f'<ul class="lines">{lines}</ul>\n' if lines else "") + tables + figures


def card(name: str, content: Mapping[str, Any], mine: Sequence[Mapping[str, Any]]) -> str:
    """The protocol of a study's figures: what all share, and a table of what sets them apart."""
    ids = list(dict.fromkeys(row["card"] for row in content["rows"] if row["study"] == name))
    cards = [flat(content["cards"][one]) for one in ids if one in content["cards"]] or [flat(one["card"]) for one in mine]
    apart = varying(cards)
    common = {line: said(line, value) for line, value in cards[0].items() if line not in apart}
    rows = [[escape(one), *(escape(said(n, c.get(n))) for n in apart)] for one, c in zip(ids, cards, strict=False)]
    body = html.pairs(common) + (html.table(["card", *map(escape, apart)], {"": rows}) if apart and rows else "")
    return html.folded(f"Protocol: the card{'s' if len(cards) > 1 else ''} of these figures", body) if any(cards) else ""


def made(results: Collected) -> str:
    """Command, versions, configuration of every evaluation."""
    text = '<section id="made"><h2>How it was made</h2>\n'
    for path, content in results:
        text += f"<h3>{escape(path.parent.name)}</h3>\n" if len(results) > 1 else ""
        text += html.code(content["command"]) if content.get("command") else ""
        versions = ", ".join(f"{name} {version}" for name, version in content.get("versions", {}).items())
        text += f'<p class="note">{escape(versions)}</p>\n' if versions else ""
        if config := content.get("config"):
            text += html.folded("Configuration", html.code(json.dumps(config, indent=2, ensure_ascii=False)))
    return text + "</section>\n"
