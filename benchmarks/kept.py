"""benchmarks/results/<machine>.json: what was measured on one machine, part by part."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import here

RESULTS = Path(__file__).parent / "results"
FORMAT = 1


def path(device: str) -> Path:
    """This machine's file."""
    return RESULTS / f"{here.name(device)}.json"


def read(file: Path) -> dict[str, Any]:
    """What a file holds; a new one's content where there is none. Raises ValueError for another format."""
    if not file.exists():
        return {"format": FORMAT, "parts": {}}
    found = json.loads(file.read_text())
    if found.get("format") != FORMAT:
        raise ValueError(f"{file} has format {found.get('format')}, this program reads {FORMAT}")
    return found


def add(file: Path, key: str, part: dict[str, Any], device: str) -> None:
    """One part more, in the place of an older one; each says on what and when it was measured."""
    content = read(file)
    content["parts"][key] = {**part, "machine": here.facts(device)}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(f".{os.getpid()}.part")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, file)
