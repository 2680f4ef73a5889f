"""Waiting for what one process does alone, however long it takes, as long as it lives."""

import threading
import time
from itertools import count
from typing import Self

import torch.distributed as dist

from anysigma.machine.distributed import rank_and_world
from anysigma.machine.watch import Silent

BEAT, LOOK = 2.0, 0.1  # seconds between two signs of life, between two looks
_meetings = count()


class Patience:
    """As long as it is open, every process gives a sign of life in the store in which they met.

    A collective ends after hardware.timeout, whatever the others do; `wait` ends after `timeout` seconds without a sign.
    """

    def __init__(self, timeout: float):
        self.timeout = timeout
        self.rank, self.world = rank_and_world()
        self._store = dist.distributed_c10d._get_default_store() if self.world > 1 else None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="signs of life")

    def __enter__(self) -> Self:
        if self._store is not None:
            self._beating.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._store is not None:
            self._beating.join()

    def wait(self) -> None:
        """Until all have come here; raises Silent where one gives no sign of life."""
        if self._store is None:
            return
        meeting = f"anysigma/meeting/{next(_meetings)}"
        self._store.set(f"{meeting}/{self.rank}", "")
        missing, signs = [rank for rank in range(self.world) if rank != self.rank], {}
        while missing := [rank for rank in missing if not self._store.check([f"{meeting}/{rank}"])]:
            for rank in missing:
                self._hold(rank, signs)
            time.sleep(LOOK)

    def _hold(self, rank: int, signs: dict[int, tuple[bytes, float]]) -> None:
        key, now = f"anysigma/alive/{rank}", time.monotonic()
        sign = self._store.get(key) if self._store.check([key]) else b""
        if rank not in signs or signs[rank][0] != sign:
            signs[rank] = sign, now
        elif now - signs[rank][1] > self.timeout:
            raise Silent(f"process {rank} timed out")

    def _beat(self) -> None:
        for n in count():
            try:
                self._store.set(f"anysigma/alive/{self.rank}", str(n))
            except RuntimeError:  # the process that keeps the store is gone; the next collective says so
                return
            if self._ended.wait(BEAT):
                return
