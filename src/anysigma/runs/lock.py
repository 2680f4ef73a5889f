"""One process group at a time in a run's folder, and in an evaluation's."""

import atexit
import errno
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from anysigma.machine.distributed import is_first, say, shown
from anysigma.runs.checkpoint import mend

LOCK, HOLDER = ".lock", ".holder"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
HELD: set[Path] = set()  # by this process


def hold(folder: Path, otherwise: str = "run=NAME starts another, and the same command goes on with this one later") -> None:
    """Rank 0 holds the folder for its whole group until its process ends, and mends what a killed one left.

    The system holds the lock and ends it with its process, however that ends; the name beside it (host, process, since
    when) is for people. Raises ValueError, with that name and what to do `otherwise`, where another holds it. Where the file
    system knows no locks, a line says so.
    """
    folder = folder.absolute()
    if not is_first() or folder in HELD:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / LOCK, fallback_to_soft=False), folder / HOLDER
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{shown(folder)} is held by {named(holder)}; {otherwise}") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        say(f"{shown(folder)}: this file system knows no locks; one command alone may write there")
    HELD.add(folder)
    atexit.register(release, lock, holder)
    holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
    mend(folder)


def release(lock: FileLock, holder: Path) -> None:
    """At the process's end."""
    holder.unlink(missing_ok=True)
    lock.release()


def named(holder: Path) -> str:
    """Who the holder says that it is."""
    try:
        said = holder.read_text(errors="replace").strip()
    except OSError:
        said = ""
    return said if said and said.isprintable() else "another process"
