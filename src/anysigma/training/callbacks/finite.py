"""What is done about a gradient, a loss or weights that are NaN or infinite."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from anysigma.machine.distributed import say, shown
from anysigma.runs.checkpoint import LAST, read, write
from anysigma.runs.not_finite import NotFinite, not_finite
from anysigma.training.callbacks.last import Last
from anysigma.training.first_bad import PATIENCE, FirstBad
from anysigma.training.offending import Batch

POLICIES = ("stop", "skip", "rollback")
TABLE = "not-finite.csv"


class GoneBack(NotFinite):
    """The run is to be started again from what is saved, with the time that is `left`.

    `skipped`: batches of the stream that no step takes then.
    """

    def __init__(self, line: str, skipped: list[int], left: float = math.inf):
        super().__init__(line)
        self.skipped, self.left = skipped, left


class Finite(Callback):
    """Watches the norm of every step's gradient, and holds every save to finite weights, average and moments.

    A loss that is not finite makes the gradient so, and all processes have one gradient: they know it without asking one
    another, and act at the same step. On a CPU the norm is read in that step, on a GPU less than 2 · `every` steps later, so
    that nobody waits. `policy`, each naming step, images and t, in not-finite.csv all of them:
    stop: training ends (NotFinite). skip: the step changes nothing, neither weights, moments nor average; what is skipped
    is counted in the checkpoint. On a GPU this reads the norm at once, a wait a step that the others do not have.
    rollback: training begins again from last.ckpt (GoneBack) and takes the batch no more, which the checkpoint says too.
    After `most` steps left out or batches skipped in a run, stop. Under fp16's loss scaler, which leaves out steps itself,
    25 such steps in a row count as the first of them.
    """

    def __init__(self, policy: str, every: int, most: int):
        if policy not in POLICIES:
            raise ValueError(f"callbacks.finite.policy={policy}: {', '.join(POLICIES)}")
        if every < 1 or most < 0:
            raise ValueError(f"callbacks.finite: every={every}, most={most}: at least 1 and 0 steps")
        self.policy, self.every, self.most = policy, every, most
        self.left_out: list[int] = []
        self._first: FirstBad | None = None
        self._scaled = False

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From here on every save is held to what is finite; no hook lies before the weights-only ones."""
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._first = FirstBad(module.device, PATIENCE if self._scaled else 1)
        if self.policy == "skip" and not self._scaled:
            module.leaves_out = lambda norm: not norm.isfinite().item()
        trainer.save_checkpoint = self._held(trainer, module, trainer.save_checkpoint)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        step = trainer.global_step
        if module.left_out:
            self._leave_out(trainer, module, step - 1)
            return
        self._first.note(module.gradient_norm, step - 1)
        found = self._first.now() if self._first.free else self._first.asked() if step % self.every == 0 else None
        self._act(trainer, module, found, "the gradient is not finite")

    def _held(self, trainer: Trainer, module: LightningModule, save: Callable[..., None]) -> Callable[..., None]:
        def held(*args: Any, **kwargs: Any) -> None:
            self._act(trainer, module, self._first.now(), "the gradient is not finite")
            states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
            name = not_finite({"weights": module.state_dict(), "moments": states})
            bad = torch.tensor(float(name is not None), device=module.device)
            if trainer.strategy.reduce(bad, reduce_op="sum").item():
                what = f"{name or 'a weight of another process'} is not finite after it"
                self._act(trainer, module, trainer.global_step - 1, what)
            save(*args, **kwargs)

        return held

    def _act(self, trainer: Trainer, module: LightningModule, k: int | None, what: str) -> None:
        """Nothing where k is None. Raises NotFinite or GoneBack, on every process."""
        if k is None:
            return
        batch = Batch.of(module, trainer.datamodule, k)
        line = f"step {k + 1}: {what}; {self._named(trainer, batch)}"
        skipped = trainer.datamodule.skipped
        if self.policy == "rollback" and len(skipped) < self.most:
            self._go_back(trainer, line, sorted({*skipped, batch.number}))
        raise NotFinite(f"{line}; training stopped at step {trainer.global_step}, {kept(trainer)}; {self._cure()}")

    def _leave_out(self, trainer: Trainer, module: LightningModule, k: int) -> None:
        self.left_out.append(k)
        if len(self.left_out) > self.most:
            self.left_out.pop()
            self._act(trainer, module, k, "the gradient is not finite")
        batch = Batch.of(module, trainer.datamodule, k)
        count = f"{len(self.left_out)} of at most {self.most}"
        say(f"step {k + 1}: the gradient is not finite, the step is left out ({count}); {self._named(trainer, batch)}")

    def _go_back(self, trainer: Trainer, line: str, skipped: list[int]) -> None:
        """What is skipped goes into last.ckpt first, so that a cut run takes it up too."""
        path, data = saved(trainer), trainer.datamodule
        if trainer.is_global_zero and path.exists():
            write({**read(path), type(data).__qualname__: {"skipped": skipped}}, path)
        trainer.strategy.barrier()
        count = f"{len(skipped)} of at most {self.most}"
        left = min((c.left for c in trainer.callbacks if isinstance(c, Last)), default=math.inf)
        raise GoneBack(f"{line}; going back, {kept(trainer)}, and on without this batch ({count})", skipped, left)

    def _named(self, trainer: Trainer, batch: Batch) -> str:
        path = Path(trainer.default_root_dir) / TABLE
        where = f" ({batch.write(path)})" if trainer.is_global_zero else ""
        return batch.line() + where

    def _cure(self) -> str:
        if self.policy == "rollback":
            return f"callbacks.finite.most={self.most} batches were skipped before"
        if self.policy == "skip":
            return f"callbacks.finite.most={self.most} steps were left out before"
        return "a lower optimizer.adam.lr may do, or callbacks.finite.policy=rollback, which goes on without these images"

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": list(self.left_out)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left_out = list(state["left_out"])


def saved(trainer: Trainer) -> Path:
    """Where the run goes on from."""
    return Path(trainer.default_root_dir) / "checkpoints" / LAST


def kept(trainer: Trainer) -> str:
    """What there is of it."""
    path = saved(trainer)
    return f"{shown(path)} holds step {read(path)['step']}" if path.exists() else "nothing was saved before"
