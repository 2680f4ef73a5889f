"""Lightning's DDP for training and for figures: with a time limit, a watch over its processes, and one start for all."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lightning.fabric.strategies import DDPStrategy as OfFabric
from lightning.pytorch.strategies import DDPStrategy as OfTrainer

from anysigma.machine.meeting import same
from anysigma.machine.watch import FIRST, watch
from anysigma.runs.checkpoint import weights_digest, weights_of
from anysigma.runs.identity import digest


class Together:
    """Ahead of either strategy. `facts`: what has to be the same on all processes, compared when they meet (ValueError);
    `timeout`: seconds in which each has to answer the others.
    """

    def __init__(self, facts: Callable[[], dict[str, Any]], timeout: float):
        self.timeout, self.facts = timedelta(seconds=timeout), facts
        super().__init__(timeout=self.timeout)
        if "LOCAL_RANK" not in os.environ:
            os.environ[FIRST] = str(os.getpid())

    def setup_environment(self) -> None:
        """The processes have been started and meet."""
        children = self.launcher.procs if self.launcher is not None else []
        watch(children)
        children.clear()  # Lightning's own watch would end this process without a word
        super().setup_environment()
        same(self.facts())


def beginning(identity: dict[str, Any], data_hash: str | None, before: dict[str, Any] | None) -> dict[str, Any]:
    """With what a start of a run begins; `before`: its checkpoint, where there is one."""
    found = {"what is done": "training", "the step that is saved": before["step"] if before else 0}
    found["its weights"] = weights_digest(weights_of(before)) if before else "none"
    return found | {"the run's configuration": digest(identity), "the training images": data_hash}


class Training(Together, OfTrainer):
    """For Trainer."""


class Measuring(Together, OfFabric):
    """For Fabric."""
