"""docs/performance.md's tables from benchmarks/results/*.json; the prose around them is written by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import kept

PAGE = Path(__file__).parents[1] / "docs/performance.md"
COLUMNS = ("contestant", "images/s", "smallest to largest", "parameters, GFLOP an image", "computed as", "after backward")
BEGIN, END = "<!-- tables: made by `make bench` -->", "<!-- end of tables -->"


def update(page: Path = PAGE, results: Path = kept.RESULTS) -> None:
    """Put the tables of every machine between the page's two marks. Raises ValueError where the page has not both."""
    text = page.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{page}: the tables go between the lines '{BEGIN}' and '{END}', which must stand there once")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    made = [machine(kept.read(file)) for file in sorted(results.glob("*.json"))]
    page.write_text("\n\n".join([before + BEGIN, *made, END + after]))


def machine(content: dict[str, Any]) -> str:
    """All tables of one machine under its name."""
    parts = content["parts"]
    first = next(iter(parts.values()))["machine"]
    what = f"{first['processor']} ({first['units']}), {first['cores']} cores, {first['memory_gib']} GiB"
    lines = [f"## {first.get('gpu') or what}", f"torch {first['versions']['torch']}." + (f" {what}." * ("gpu" in first))]
    return "\n\n".join([*lines, *(part_table(part) for part in parts.values())])


def part_table(part: dict[str, Any]) -> str:
    """One part: a race, or rows as they were measured."""
    day = part["machine"]["date"]
    head = f"### {capital(part['title'])}\n\n{part['note']}\n" if part.get("note") else f"### {capital(part['title'])}\n"
    body = race_table(part) if "entries" in part else table(part["columns"], part["rows"])
    return f"{head}\n{body}\n\nMeasured {day}."


def capital(title: str) -> str:
    """With a capital where it begins with a letter."""
    return title[:1].upper() + title[1:]


def race_table(part: dict[str, Any]) -> str:
    """Contestants with median and spread, and below them the ratios."""
    rows = [row_of(name, entry) for name, entry in part["entries"].items()]
    first = table(COLUMNS, rows)
    if not part["ratios"]:
        return first
    return f"{first}\n\n{table(['images/s of', 'over those of', 'ratio', '95 %', 'pairs', 'wanted'], ratios(part))}"


def row_of(name: str, entry: dict[str, Any]) -> list[str]:
    """A contestant."""
    facts, share = entry["facts"], entry.get("after_backward")
    how = [facts.get("precision"), facts.get("memory_format"), "fused" if facts.get("fused") else None]
    how = ", ".join(word for word in how if word)
    how += f" ({', '.join(f'{name} {rate:.3g}' for name, rate in entry['tried'].items())} tried)" if entry["tried"] else ""
    after = f"{100 * share['median']:.1f} %" if share else ""
    size = f"{facts['parameters'] / 1e6:.3g} M, {facts['gflop']:.3g}" if "gflop" in facts else ""
    return [name, f"{entry['median']:.4g}", f"{entry['min']:.4g} to {entry['max']:.4g}", size, how, after]


def ratios(part: dict[str, Any]) -> list[list[str]]:
    """Every pair that was asked for."""
    return [
        [
            one["one"], one["other"], f"{one['ratio']:.2f}",
            f"{one['low']:.2f} to {one['high']:.2f}" if "low" in one else "", str(one["pairs"]),
            f"≥ {one['wanted']}" if one["wanted"] else "",
        ]
        for one in part["ratios"]
    ]  # fmt: skip


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
