"""Pieces of a page as HTML text: everything that comes in is escaped here, and nothing refers to another file."""

import base64
import re
import struct
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from anysigma.report.plots import Curve, Plot, svg

PNG = b"\x89PNG\r\n\x1a\n"
WIDE = 1.9  # a picture this many times as wide as high gets a row of its own
# x_0, f_θ, L_{t-1}: one letter and a short index, never a part of a longer name.
INDEXED = re.compile(r"(?<![\w.])([A-Za-zα-ω]\u0302?)_(?:\{([^{}<>]{1,8})\}|([0-9A-Za-zα-ω]{1,2}(?:[-+]1)?))(?!\w|\.[\w.])")
NUMERIC = re.compile(r"(n/a|inf|nan|[-–+±≈<>~(]?\s*[\d.].*|[-–]?)")


def prose(text: str) -> str:
    """Escaped, with x_0 set as a letter and its index."""
    return INDEXED.sub(lambda m: f"<i>{m[1]}</i><sub>{m[2] or m[3]}</sub>", escape(text, quote=False))


def document(title: str, body: str) -> str:
    """The whole file, its style inside."""
    css = resources.files("anysigma.report").joinpath("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(columns: Sequence[str], groups: Mapping[str, Sequence[Sequence[str]]], title: str = "", note: str = "") -> str:
    """A table in a box of its own that scrolls; cells are HTML; a group with a name begins with a row that bears it."""
    rows = [row for group in groups.values() for row in group]
    right = [all(NUMERIC.fullmatch(_bare(row[i])) for row in rows) and i > 0 for i in range(len(columns))]
    head = "".join(f'<th scope="col"{_right(right[i])}>{name}</th>' for i, name in enumerate(columns))
    body = "".join(f"<tbody>{_group(name, len(columns))}{_rows(group, right)}</tbody>" for name, group in groups.items())
    caption = f"<caption>{title}</caption>" if title else ""
    label = f' aria-label="{escape(_bare(title) or "table")}"'
    below = f'<p class="note">{note}</p>' if note else ""
    tall = " tall" if len(rows) > 24 else ""
    return (
        f'<div class="block"><div class="scroll{tall}" tabindex="0" role="region"{label}>'
        f"<table>{caption}<thead><tr>{head}</tr></thead>{body}</table></div>{below}</div>\n"
    )


def _group(name: str, width: int) -> str:
    return f'<tr class="group"><th scope="rowgroup" colspan="{width}">{name}</th></tr>' if name else ""


def _rows(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    text = ""
    for first, *others in rows:
        cells = "".join(f"<td{_right(right[i])}>{cell}</td>" for i, cell in enumerate(others, 1))
        text += f'<tr><th scope="row">{first}</th>{cells}</tr>\n'
    return text


def _right(right: bool) -> str:
    return ' class="n"' if right else ""


def _bare(cell: str) -> str:
    return re.sub(r"<[^>]*>", "", cell).strip()


def pairs(lines: Mapping[str, str], kind: str = "card") -> str:
    """Names and values, one below the other; both are text."""
    body = "".join(f"<div><dt>{escape(name)}</dt><dd>{breakable(value)}</dd></div>" for name, value in lines.items())
    return f'<dl class="{kind}">{body}</dl>\n'


def breakable(text: str) -> str:
    """Prose whose paths may be broken after a slash."""
    return re.sub(r"(?<!<)/(?=\w)", "/<wbr>", prose(text))


def folded(summary: str, body: str) -> str:
    """Behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def code(text: str) -> str:
    """As it was typed."""
    return f'<pre tabindex="0"><code>{escape(text)}</code></pre>\n'


def picture(path: Path, caption: str) -> str:
    """A PNG inside the page; a line in its place where the file is no longer there."""
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if not data.startswith(PNG):
        return f'<p class="note">{escape(path.name)}: no picture beside results.json</p>\n'
    width, height = struct.unpack(">II", data[16:24])
    wide = ' class="wide"' if width > WIDE * height else ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(caption or path.stem)}">'
    return f"<figure{wide}>{image}<figcaption>{prose(caption or path.stem)}</figcaption></figure>\n"


def plot(facts: Mapping[str, Any] | Plot, prefix: str) -> str:
    """Curves as SVG in the page's own colours; `prefix` keeps its ids apart from those of other plots."""
    if not isinstance(facts, Plot):
        facts = Plot(**{**facts, "curves": [Curve(**curve) for curve in facts["curves"]]})
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg(facts), flags=re.DOTALL)
    text = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    text = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", text)
    label = f'role="img" aria-label="{escape(facts.caption)}"'
    return f"<figure>{text.replace('<svg ', f'<svg {label} ', 1)}<figcaption>{prose(facts.caption)}</figcaption></figure>\n"
