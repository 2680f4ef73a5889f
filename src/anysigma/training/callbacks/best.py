"""`best.ckpt`: the weights that stood best so far."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from anysigma.training.callbacks.distance import Distance


class Best(ModelCheckpoint):
    """Keeps checkpoints/best.ckpt, weights only, by the distance, or by held-out L_γ where no distance is measured."""

    def __init__(self, every: int):
        super().__init__(
            filename="best", every_n_train_steps=every, save_weights_only=True, enable_version_counter=False, monitor="-"
        )

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        measured = [c for c in trainer.callbacks if isinstance(c, Distance)]
        self.monitor = f"distance/{measured[0].features.metric}" if measured else "held_out/loss"
        self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, module, stage)
