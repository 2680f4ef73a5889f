"""An end for all processes where one of them has ended, or does not answer: whoever waits for it would wait in vain."""

import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any, NoReturn

import torch.distributed as dist

from anysigma.machine.distributed import is_first

POLL = 0.5  # seconds between two looks
GRACE = 30.0  # seconds for a process to come to its own end (loggers, an error of the backend) when another has ended
TURN = 15.0  # seconds after which a process speaks that is not the first
LOOK = 2.0  # seconds in which the system says who has ended
ASKED = 128  # from here on: the exit codes of those that a signal has asked to stop, and that have saved
FIRST = "ANYSIGMA_FIRST"  # the process that starts the others of this machine, to those
SAID = 200  # letters of what a backend says
BACKEND = ("gloo", "nccl", "connection closed by peer", "connection reset by peer")  # in what a backend says


class Silent(RuntimeError):
    """Another process gives no sign of life."""


class Watch(threading.Thread):
    """Looks after the processes that this one has started, `children`, and after the one that has started it."""

    def __init__(self, children: Sequence[Popen]):
        super().__init__(daemon=True, name="watch")
        self.children, self.parent = list(children), os.getppid()

    def run(self) -> None:
        while (found := self.gone()) is None:
            time.sleep(POLL)
        time.sleep(GRACE)
        end(found)

    def gone(self) -> str | None:
        """Who has ended and how, in words; None while all are there, or have ended well or when they were asked to."""
        for rank, child in enumerate(self.children, 1):
            if child.poll() and child.returncode < ASKED:
                return f"process {rank} {how(child.returncode)}"
        return None if os.getppid() == self.parent else "the process that started this one has ended"


_watch: Watch | None = None


def watch(children: Sequence[Popen]) -> None:
    """Begin, once in a process."""
    global _watch
    if _watch is None:
        _watch = Watch(children)
        _watch.start()


def children() -> Sequence[Popen]:
    """Those that this process has started."""
    return _watch.children if _watch is not None else ()


def how(code: int) -> str:
    """An exit code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def lost(error: BaseException) -> bool:
    """Whether this is the backend's word that another process is gone, or does not answer in time."""
    said = str(error).lower()
    of_backend = isinstance(error, RuntimeError) and any(word in said for word in BACKEND)
    return of_backend or isinstance(error, dist.DistError | Silent)


def watched(task: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A task whose processes all end where a backend says that one of them is gone."""

    @functools.wraps(task)
    def ending(cfg: Any) -> Any:
        try:
            return task(cfg)
        except (ValueError, OSError):  # what is wrong is said: those that this one has started have nothing to add
            for child in children():
                child.kill()
            raise
        except RuntimeError as error:
            if not lost(error):
                raise
            if os.environ.get("ANYSIGMA_TRACE") == "1":
                traceback.print_exc()
            end_for(error)

    return ending


def end_for(error: BaseException) -> NoReturn:
    """All end, in a line that the first process says, or the next that can."""
    found, here = gone_within(LOOK), int(os.environ.get("LOCAL_RANK") or 0)
    alone = _watch is not None and os.getppid() != _watch.parent
    if alone and here > 1:
        os._exit(1)  # process 1 says it
    if not is_first() and not alone:
        time.sleep(TURN + here)
    end(found or silent(error))


def silent(error: BaseException) -> str:
    """What a backend's error says of another process."""
    if any(word in str(error).lower() for word in ("timed out", "timeout")):
        return "another process did not answer within hardware.timeout"
    return f"the connection to another process broke ({' '.join(str(error).split())[:SAID]})"


def gone_within(seconds: float) -> str | None:
    """Who has ended: the system says so a moment after the connection is gone."""
    until = time.monotonic() + seconds
    while _watch is not None and (found := _watch.gone()) is None and time.monotonic() < until:
        time.sleep(0.05)
    return found if _watch is not None else None


def end(why: str) -> NoReturn:
    """Say why; end this process, those that it has started, and the one that has started it, where that is stopped."""
    print(f"error: {why}; all end here, the same command goes on from what is saved", file=sys.stderr, flush=True)
    sys.stdout.flush()
    for child in children():
        if child.poll() is None:
            child.kill()
    first = os.environ.get(FIRST)
    if first == str(os.getppid()) and stopped(os.getppid()):
        os.kill(os.getppid(), signal.SIGKILL)  # it would have ended us, could it
    os._exit(1)  # nothing that follows may wait for a process that is gone


def stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped (SIGSTOP); known on Linux alone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
