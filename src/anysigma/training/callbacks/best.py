"""`best.ckpt`: the weights that stood best so far."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from anysigma.training.callbacks.base import Periodic
from anysigma.training.callbacks.distance import Distance
from anysigma.training.callbacks.held_out import HeldOut


class Best(Checkpoint):
    """Keeps checkpoints/best.ckpt, weights only: saved when the figure it watches is made and is lower than ever.

    It watches the distance, or held-out L_γ where no distance is measured. Lightning runs checkpoint callbacks after
    all others, so the figure is this step's; what stood best is part of the checkpoint, wherever the run is moved.
    """

    def __init__(self):
        self.score, self.step = float("inf"), 0
        self._watched: Periodic | None = None

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        found = [c for kind in (Distance, HeldOut) for c in trainer.callbacks if isinstance(c, kind)]
        self._watched = found[0] if found else None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self._watched is None or self._watched.acted_at != step or step <= self.step:
            return
        value = trainer.callback_metrics[self._watched.metric].item()
        if value < self.score:
            self.score, self.step = value, step
            path = Path(trainer.default_root_dir) / "checkpoints" / "best.ckpt"
            trainer.save_checkpoint(path, weights_only=True)

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step = state["score"], state["step"]
