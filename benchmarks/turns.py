"""The child's side: a contestant is made once and then computes only when it is told to."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import numpy as np


class Turns:
    """Orders from the parent, one JSON line each, and the answers to them.

    An order is `steps` (so many), `seconds` (as many steps as begin within them) or `n` images `to` a file.
    """

    def __init__(self, orders: TextIO, answers: TextIO):
        self._orders, self._answers = orders, answers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while line := self._orders.readline():
            yield json.loads(line)

    def answer(self, **facts: Any) -> None:
        """One line back."""
        self._answers.write(json.dumps(facts) + "\n")
        self._answers.flush()


def from_parent() -> Turns:
    """Orders from stdin, answers to what was stdout; whatever else prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return Turns(sys.stdin, answers)


class Turn:
    """One order on its way: counts steps and the time since it began."""

    def __init__(self, order: dict[str, Any]):
        self.steps, self._begun = 0, time.perf_counter()
        self._most, self._until = order.get("steps", math.inf), order.get("seconds", math.inf)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._begun

    @property
    def over(self) -> bool:
        """Whether no further step begins."""
        return self.steps >= self._most or self.seconds >= self._until


def obey(
    turns: Turns,
    step: Callable[[], Any],
    images: Callable[[int], np.ndarray] | None = None,
    wait: Callable[[], Any] = lambda: None,
) -> None:
    """Until the parent has no more orders. `wait`: until a device has done what it was asked."""
    for order in turns:
        if "to" in order:
            np.save(order["to"], images(order["n"]))
            turns.answer()
            continue
        turn = Turn(order)
        while not turn.over:
            step()
            turn.steps += 1
        wait()
        turns.answer(steps=turn.steps, seconds=turn.seconds)


def synchronise(device: str) -> None:
    """Until a GPU has done all it was asked; a CPU has."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
