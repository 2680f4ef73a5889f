"""What this process does while strangers' files are read: code that is run, and files beyond those that it may open."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from anysigma.compose.cli import one_line, said_by_us

ROOT = Path(__file__).parents[1]
RUNS_CODE = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "shutil.rmtree")
FILES = ("open", "os.mkdir", "os.rename", "os.remove")
SYSTEM = ("/proc", "/dev", "/sys", "/usr/lib", "/usr/share", "/etc/ld", "/etc/fonts", "/tmp/torchinductor_")

_events: list[str] | None = None
_known: tuple[str, ...] = ()


def _hook(name: str, arguments: tuple) -> None:  # an audit hook stays for the process's life: it listens when asked to
    if _events is None:
        return
    if name in RUNS_CODE:
        _events.append(f"{name} {arguments!r}"[:200])
    elif name in FILES and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(arguments[0]))
        if not path.startswith(_known) and path != "/tmp":
            _events.append(f"{name} {path}")


sys.addaudithook(_hook)


@contextmanager
def watched(*places: Path | str) -> Iterator[None]:
    """Raises AssertionError where code was run, or a file opened that lies neither in `places` nor among the libraries."""
    global _events, _known
    import matplotlib

    own = (sys.prefix, sys.base_prefix, matplotlib.get_cachedir(), matplotlib.get_configdir(), *sys.path)
    _known = tuple(str(place) for place in (*places, ROOT, *own, *SYSTEM) if str(place))
    _events = found = []
    try:
        yield
    finally:
        _events = None
    assert not found, found


def ours(error: BaseException, conf: str | None = None) -> str:
    """The one line that a person would see; raises the error itself where it would be a trace."""
    if not said_by_us(error):
        raise error
    line = one_line(error, conf)
    assert line and line.isprintable() and len(line) < 3000, repr(line)[:500]
    return line
