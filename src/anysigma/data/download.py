"""Published files from the network: written aside, verified, renamed."""

import os
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from rich.progress import Progress

BLOCK, TIMEOUT = 1 << 20, 30


def fetch(url: str, path: Path, verify: Callable[[Path], None], instead: str) -> Path:
    """Download `url` to `path`; `verify` raises ValueError where the content is not the published one.

    Until then it lies beside as <name>.<pid>.part. `instead` ends the one line of the ConnectionError that is raised
    where the network is not there: what else a person can do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        _transfer(url, part)
        verify(part)
        part.replace(path)
    except (OSError, HTTPException) as error:  # urllib's URLError is an OSError
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ConnectionError(f"{url} cannot be fetched ({reason}); {instead}") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _transfer(url: str, part: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, part.open("wb") as file, Progress(transient=True) as bar:
        length = response.headers.get("Content-Length")
        task = bar.add_task(url.rsplit("/", 1)[-1], total=int(length) if length else None)
        while block := response.read(BLOCK):
            file.write(block)
            bar.advance(task, len(block))
