"""Calls that a run does not wait for and does not depend on."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

# More than any outage of a start asks for (a log call a step, thirty seconds); memory has an end.
WAITING = 100_000
# Seconds after which a call that does not return is taken to never return.
STUCK = 300.0
# Seconds between looks: what was asked for meanwhile is done in one go, so that the thread seldom takes Python from others.
PAUSE = 0.5


class Aside:
    """Calls in a thread of their own, one after the other; `aside(function, *args)` returns at once and raises nothing.

    The first call that raises or does not return within STUCK seconds, and the first that finds WAITING others before it,
    ends them: `failed` is told why, once, and what is asked for later is dropped.
    """

    def __init__(self, failed: Callable[[BaseException], None]):
        self.over = False
        self._failed, self._lock = failed, threading.Lock()
        self._calls: queue.Queue = queue.Queue(WAITING)
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="aside", daemon=True)
        self._thread.start()

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        since = self._busy_since
        if since is not None and time.monotonic() - since > STUCK:
            self._fail(TimeoutError(f"no answer for {STUCK:.0f} s"))
        if not self.over:
            try:
                self._calls.put_nowait((function, args))
            except queue.Full:
                self._fail(TimeoutError(f"{WAITING} calls behind"))

    def wait(self, limit: float) -> None:
        """Until all that was asked for is done or over, at most `limit` seconds."""
        end = time.monotonic() + limit
        while self._calls.unfinished_tasks and not self.over and time.monotonic() < end:
            time.sleep(0.01)

    def close(self, function: Callable[..., Any], *args: Any, limit: float) -> bool:
        """After all that waits, or at once where they are over, this last call; whether it ended within `limit` seconds."""
        end = time.monotonic() + limit
        try:
            self._calls.put((function, args, True), timeout=limit)
        except queue.Full:
            return False
        self._thread.join(max(end - time.monotonic(), 0.0))
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            function, args, *last = self._calls.get()
            if last or not self.over:
                self._busy_since = time.monotonic()
                try:
                    function(*args)
                except BaseException as error:  # also a SystemExit: in a thread it would end nothing but the thread
                    self._fail(error)
                self._busy_since = None
            self._calls.task_done()
            if last:
                return
            if self._calls.empty():
                time.sleep(PAUSE)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            first, self.over = not self.over, True
        if first:
            self._failed(error)
