"""Evaluations as one page that opens without a network: summary, figures, pictures, cards, how it was made."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from anysigma import html
from anysigma.comparison import comparison, metric_name, shown_value
from anysigma.figures import Collected, Figure, collect, figures, flat, phrase, run_of, said, varying

__all__ = ["collect", "page", "write_report"]

STUDIES = {
    "fidelity": ("Fidelity", "How far one sampler's images are from real ones, beside what as many real images reach."),
    "table": ("Steps and noise", "One network, every sampler: the distance over the number of steps S and the noise η."),
    "reconstruction": ("Reconstruction", "Held-out images, encoded to x_T by DDIM and decoded again: what is lost."),
    "interpolation": ("Interpolation", "Between two noises on the great circle through them: x_T moves, the image follows."),
    "consistency": ("Consistency", "The same x_T in few steps and in many: what the noise alone decides about an image."),
    "trajectory": ("From noise to image", "One run of the sampler: the state x_t, and the x_0 that the network sees in it."),
    "one_step": ("One step", "From pure noise to x_0 in a single jump: nearly the mean of the data, and why."),
    "likelihood": ("Likelihood", "The variational bound on held-out images in bits a dimension, and where they are spent."),
    "objective": ("One objective for every σ", "J_σ and L_γ on the same draws differ by a constant that no network moves."),
    "schedule": ("Noise schedules", "How much signal is left at every t, and the weights γ_t that follow from it."),
    "memorisation": ("Memorisation", "The nearest training images of generated ones, beside those of held-out images."),
    "speed": ("Speed", "Images a second and seconds an image, against the number of steps S."),
    "plane": ("In the plane", "Points instead of images: the generated beside the data, where every error can be seen."),
}
FACTS = {
    "checkpoint": "Checkpoint", "step": "Step", "weights": "Weights", "schedule": "Schedule", "reference": "Reference",
    "features": "Features", "precision": "Precision",
}  # fmt: skip


def write_report(folder: Path, collected: Collected | None = None) -> Path:
    """`folder`/report.html over the evaluations, by default the one in the folder; written aside and renamed."""
    path = Path(folder) / "report.html"
    text = page(collected if collected is not None else collect(str(Path(folder) / "results.json")))
    aside = path.with_suffix(".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
    return path


def page(results: Collected) -> str:
    """The page over one evaluation or several, each with the path of its results.json."""
    if not results:
        raise ValueError("a report needs at least one evaluation")
    numbers, many = count(1), len(results) > 1
    found = figures(results)
    over = comparison(found, results, numbers) if many else key_figures(found)
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
    names = {section["study"] for _, content in results for section in content["sections"]}
    return f"{len(runs)} runs compared" if runs else ", ".join(titled(name)[0] for name in sorted(names)) or "Evaluation"


def cards_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cards of all sections, then those of all rows."""
    return [card for card in (*(s["card"] for s in content["sections"]), *content["cards"].values()) if card]


def opening(title: str, results: Collected) -> str:
    """The title, and of one evaluation what was evaluated."""
    head = f'<header><p class="kicker">anysigma · evaluation</p><h1>{escape(title)}</h1>'
    if len(results) > 1:
        return f'{head}<p class="lead">{len(results)} evaluations on one page.</p></header>\n'
    known: dict[str, Any] = {}
    for card in cards_of(results[0][1]):
        known = {**card, **known}
    facts = {name: fact(known[line]) for line, name in FACTS.items() if line in known}
    if "n" in known:
        facts["Images"] = f"{known['n']} a set" + (f", {known['sets']} sets" if "sets" in known else "")
    return f"{head}</header>\n{html.pairs(facts, 'facts') if facts else ''}"


def fact(value: Any) -> str:
    """A card's line in short: an object by its name and its most important arguments."""
    if isinstance(value, Mapping) and "_target_" in value:
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


def key_figures(found: Sequence[Figure]) -> str:
    """All rows of one evaluation, grouped by study."""
    if not found:
        return ""
    groups: dict[str, list[list[str]]] = {}
    for row in found:
        setting = html.prose(phrase(row.params))
        groups.setdefault(html.prose(titled(row.study)[0]), []).append([metric_name(row.metric), *shown_value(row), setting])
    note = "± one standard error. Floor: what as many real images reach in place of the generated ones, ± its spread."
    body = html.table(
        ["Figure", "Value", "Floor", "Setting"], groups, note=note if any(f.floor is not None for f in found) else ""
    )
    return f'<section id="figures"><h2>Key figures</h2>{body}</section>\n'


def titled(name: str) -> tuple[str, str]:
    """Title and sentence of a study; an unknown one has its name."""
    return STUDIES.get(name, (name.replace("_", " ").capitalize(), ""))


def study(name: str, results: Collected, numbers: Iterable[int]) -> str:
    """All that the evaluations found in one study, each under its own heading where there are several."""
    title, sentence = titled(name)
    having = [(p, c, mine) for p, c in results if (mine := [s for s in c["sections"] if s["study"] == name])]
    lead = f'<p class="lead">{html.prose(sentence)}</p>' if sentence else ""
    text = f'<section id="study-{escape(name)}"><h2>{html.prose(title)}</h2>{lead}\n'
    settings = [flat(mine[0]["card"]) for _, _, mine in having]
    apart = [
        line
        for line in varying(settings)
        if line in ("step", "weights", "sampler", "S", "sigma", "tau", "clip", "n", "seed")
    ]
    for (path, content, mine), setting in zip(having, settings, strict=True):
        if len(results) > 1:
            words = [evaluation(path, setting), phrase({line: setting.get(line) for line in apart})]
            text += f"<h3>{html.prose(' · '.join(filter(None, words)))}</h3>\n"
        text += "".join(section(one, path.parent, numbers) for one in mine) + card(name, content, mine)
    return text + "</section>\n"


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
