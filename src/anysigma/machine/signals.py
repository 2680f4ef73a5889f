"""Signals that ask a process to end: before and after training it ends in one line; training saves first."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from anysigma.machine.distributed import is_first

# Ctrl-C; a scheduler that wants the machine, `kill`, `timeout`; a scheduler's warning that the job's time is nearly up.
ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
TOGETHER = 2.0  # seconds: signals so near have one cause, a terminal's and a launcher's that passes it on


class Stopped(KeyboardInterrupt):
    """The end that a signal asks for: `number` is the signal's; `silent` where another process says so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number, self.silent = number, not is_first()


class Signals:
    """SIGINT, SIGTERM and SIGUSR1 of this process while they are `heard`: raised as `Stopped`; while `held`, only noted.

    `number`: of the first that came. No second SIGTERM or SIGUSR1 acts: schedulers send several and end with SIGKILL, and
    what is saved meanwhile is won. A second SIGINT ends the process at once, unless it came together with the first or
    torchrun passes it on, that kills after 30 s by itself. One that is ignored (nohup) stays ignored, and a SIGUSR1 that
    somebody handles (submitit, where it requeues) stays theirs.
    """

    def __init__(self):
        self.number: int | None = None
        self.children: Callable[[], Iterable[Any]] = tuple  # processes that this one has started and that end with it
        self._held, self._since, self._process = False, 0.0, 0

    def listen(self) -> Mapping[int, Any]:
        """Take the signals over; returns their handlers before. Only a process's main thread can."""
        self._process = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            return {}
        before = {number: signal.getsignal(number) for number in ASKING}
        before = {number: handler for number, handler in before.items() if self._is_free(number, handler)}
        if self._hear not in before.values():
            self.number = None  # within a command that listens already, what was heard stays heard
        for number in before:
            signal.signal(number, self._hear)
        return before

    @contextmanager
    def heard(self) -> Iterator[None]:
        """A whole command, from its first word to its last; then Ctrl-C acts as ever, and the others are too late to act.

        Python gives signals back while it ends, for a second with torch: a job that was done would die of a warning.
        """
        taken = self.listen()
        try:
            yield
        finally:
            for number in taken:
                signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Signals are noted: whoever holds them reads `number`."""
        before, self._held = self.listen(), True
        try:
            yield
        finally:
            self._held = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def _is_free(self, number: int, handler: Any) -> bool:
        if handler is None or handler is signal.SIG_IGN:
            return False
        return number not in ASKING[2:] or handler in (signal.SIG_DFL, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a fork that inherited this
            self._act(number)
        elif self.number is None:
            self.number, self._since = number, time.monotonic()
            if not self._held:
                for child in self.children():
                    child.send_signal(number)
                raise Stopped(number)
        elif number == signal.SIGINT and self._again():
            self._act(number)

    def _again(self) -> bool:
        """Whether a second one is a person's."""
        return time.monotonic() - self._since > TOGETHER and "TORCHELASTIC_RUN_ID" not in os.environ

    @staticmethod
    def _act(number: int) -> None:
        """What the signal does to a process that does not listen."""
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


SIGNALS = Signals()  # a process has one set of handlers
