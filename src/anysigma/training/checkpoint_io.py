"""Lightning's checkpoints through our own writer, so that a kill never costs the last good one."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from anysigma.runs import checkpoint as file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Adds what makes the run, format, step and images_seen to what Lightning saves (weights-only files too); atomic.

    `facts`: the resolved config as plain types, identity, data_hash, init_sha256; `images_per_step`: over all ranks.
    """

    def __init__(self, facts: dict[str, Any], images_per_step: int):
        self.facts, self.images_per_step = facts, images_per_step

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        step = checkpoint["global_step"]
        facts = {**self.facts, "format": file.FORMAT, "step": step, "images_seen": step * self.images_per_step}
        file.write({**checkpoint, **facts}, Path(path))

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        checkpoint = file.read(Path(path))
        # A run that came to its end may be the middle of a longer one: else Lightning takes its one epoch for done.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        return checkpoint
