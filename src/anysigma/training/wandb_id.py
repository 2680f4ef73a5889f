"""Which W&B run a folder writes to: an id that is drawn once, kept in the folder and in its checkpoints."""

import json
import re
import secrets
import socket
from pathlib import Path
from typing import Any

from anysigma.machine.writing import written
from anysigma.runs.checkpoint import read
from anysigma.runs.listing import last

FILE = "wandb.json"


def tracked(folder: Path) -> dict[str, str]:
    """The folder's {id, folder, host}: as wandb.json or else its last checkpoint says, or drawn; wandb.json says it then.

    The id is random, so two machines with one config have two runs at W&B. A folder that was moved or renamed keeps it, a
    copy draws its own. A folder is a copy where the one on record still stands elsewhere with this id, or where both the
    machine and the folder's name are others than on record: then nobody can look, and two runs at W&B, each with all
    figures, are better than two processes in one.
    """
    here = {"folder": str(folder.absolute()), "host": socket.gethostname()}
    found = kept(folder)
    own = found["id"] if found is not None and not copied(found, here) else secrets.token_hex(8)
    record = {"id": own, **here}
    if found != record or not (folder / FILE).exists():
        with written(folder / FILE) as aside:
            aside.write_text(json.dumps(record))
    return record


def kept(folder: Path) -> dict[str, str] | None:
    """What wandb.json says, or where it is lost or damaged the last checkpoint; None where neither has an id of ours."""
    found = noted(folder)
    if found is None and last(folder).exists():
        try:
            found = whole(read(last(folder), sealed=False).get("wandb"))
        except ValueError:  # who goes on from it will say so
            found = None
    return found


def noted(folder: Path) -> dict[str, str] | None:
    """What the folder's wandb.json says, None where there is none of ours."""
    try:
        return whole(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError):
        return None


def whole(record: Any) -> dict[str, str] | None:
    """The record if it is one of ours: the id becomes a file's name, and a checkpoint may be a stranger's."""
    names = ("id", "folder", "host")
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in names):
        return None
    return {name: record[name] for name in names} if re.fullmatch(r"[0-9a-f]{16}", record["id"]) else None


def copied(found: dict[str, str], here: dict[str, str]) -> bool:
    """Whether `here` is a copy of the folder on record, see `tracked`."""
    there, place = Path(found["folder"]), Path(here["folder"])
    try:
        if there == place or there.samefile(place):
            return False
    except OSError:  # no such folder
        pass
    if (noted(there) or {}).get("id") == found["id"]:
        return True
    return found["host"] != here["host"] and there.name != place.name
