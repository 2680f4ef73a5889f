"""Waiting for what one process does alone, however long it takes, as long as it lives."""

import threading
import time
from itertools import count
from typing import Self

import torch.distributed as dist

from anysigma.machine.distributed import rank_and_world
from anysigma.machine.watch import Silent

BEAT, LOOK = 2.0, 0.1  # seconds between two signs of life, between two looks
_numbers = count()  # of meetings, the same on all processes


class Patience:
    """As long as it is open, every process gives a sign of life in the store in which they met.

    A collective ends after hardware.timeout, whatever the others do; `wait` ends after `timeout` seconds without a sign. A
    thread alone speaks with the store: the process that keeps it may be the one that is stopped, and would never answer.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.rank, self.world = rank_and_world()
        self._store = dist.distributed_c10d._get_default_store() if self.world > 1 else None
        self._ended, self._met = threading.Event(), threading.Event()
        self._meeting: str | None = None
        self._failed: RuntimeError | None = None
        self._looked, self._missing, self._signs = 0.0, [], {}
        self._speaking = threading.Thread(target=self._speak, daemon=True, name="signs of life")

    def __enter__(self) -> Self:
        if self._store is not None:
            self._speaking.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._store is not None:
            self._speaking.join(BEAT)

    def wait(self) -> None:
        """Until all have come here; raises Silent where one gives no sign of life."""
        if self._store is None:
            return
        self._met.clear()
        self._missing, self._signs, self._looked = list(range(self.world)), {}, time.monotonic()
        self._meeting = f"anysigma/meeting/{next(_numbers)}"
        while self._failed is None and not self._met.wait(LOOK):
            if time.monotonic() - self._looked > self.timeout:
                raise Silent("the process that keeps the store timed out")
        if self._failed is not None:
            raise self._failed

    def _speak(self) -> None:
        try:
            for n in count():
                self._store.set(f"anysigma/alive/{self.rank}", str(n))
                until = time.monotonic() + BEAT
                while time.monotonic() < until:
                    if self._ended.wait(LOOK):
                        return
                    if self._meeting is not None:
                        self._look(self._meeting)
        except RuntimeError as error:  # Silent, or the store is gone with the process that keeps it
            self._failed = error

    def _look(self, meeting: str) -> None:
        """Who has come, and whether those who have not are alive."""
        if self.rank in self._missing:
            self._store.set(f"{meeting}/{self.rank}", "")
        self._missing = [rank for rank in self._missing if not self._store.check([f"{meeting}/{rank}"])]
        for rank in self._missing:
            self._hold(rank)
        self._looked = time.monotonic()
        if not self._missing:
            self._meeting = None
            self._met.set()

    def _hold(self, rank: int) -> None:
        key, now = f"anysigma/alive/{rank}", time.monotonic()
        sign = self._store.get(key) if self._store.check([key]) else b""
        if rank not in self._signs or self._signs[rank][0] != sign:
            self._signs[rank] = sign, now
        elif now - self._signs[rank][1] > self.timeout:
            raise Silent(f"process {rank} timed out")
