"""Lightning's checkpoints through our own writer, so that a kill never costs the last good one."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from anysigma.runs import checkpoint as file
from anysigma.runs.not_finite import hold_finite


class AtomicCheckpointIO(TorchCheckpointIO):
    """Adds what makes the run, format and step to what Lightning saves (in weights-only files too) and writes atomically.

    `facts`: the resolved config as plain types, identity, data_hash, init_sha256; `micro_steps`: of one optimiser step in
    this run.
    """

    def __init__(self, facts: dict[str, Any], micro_steps: int):
        self.facts, self.micro_steps = facts, micro_steps

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        hold_finite(checkpoint)
        facts = {**self.facts, "format": file.FORMAT, "step": checkpoint["global_step"]}
        path = Path(path)
        previous = path.with_name(file.PREVIOUS) if path.name == file.LAST else None
        file.write({**checkpoint, **facts}, path, previous)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        checkpoint = file.read(Path(path))
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"] = progress(checkpoint["step"] * self.micro_steps)
        return checkpoint


def progress(batches: int) -> dict[str, Any]:
    """Lightning's state between two batches, at on_train_batch_end of the `batches`-th, as it stands when files are written.

    Counted anew from the optimiser step, so that a run may go on with another number of micro-steps. No batch is the last:
    a run that came to its end may be the middle of a longer one, and Lightning would take its one epoch for done.
    """
    count = {"ready": batches, "started": batches, "processed": batches, "completed": batches - 1}
    return {"total": count, "current": {**count}, "is_last_batch": False}
