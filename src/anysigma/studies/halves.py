"""A denoiser that computes a batch in halves of its rows where a device has no room for the whole."""

from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.machine.distributed import rank_and_world, say
from anysigma.machine.memory import give_back, out_of_memory
from anysigma.machine.writing import written
from anysigma.report.results import Result

EQUAL = "equal to 1e-4"  # of images: a row's convolutions are summed in another order beside fewer neighbours


class Rows:
    """How much of a batch is computed at once: 1/`parts` of it, 1, 2, 4, …; copies of a denoiser share it.

    `most`: into how many parts anything went that the figures are made of, images of an earlier evaluation too.
    """

    def __init__(self):
        self.parts, self.most, self._said = 1, 1, False

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def halve(self) -> None:
        """From here on half as much."""
        give_back()
        self.parts *= 2
        self.most = max(self.most, self.parts)
        self._say()

    def kept(self, folder: Path) -> None:
        """Images that lie in `folder` were made so, or by an evaluation before this one: a word of it lies beside them."""
        path = folder / "rows.txt"
        with suppress(OSError, ValueError):
            self.most = max(self.most, int(path.read_text()))
        if self.most > 1:
            with written(path) as aside:
                aside.write_text(str(self.most))

    def mark(self, result: Result, device: torch.device) -> Result:
        """The result, with a line on its card where any process had to halve; every process calls it."""
        if rank_and_world()[1] > 1:
            most = torch.tensor(self.most, device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            self.most = int(most)
        if self.most > 1:
            self._say()
            result.card["rows"] = f"1/{self.most} of a block at once, for memory: {EQUAL}"
        return result

    def _say(self) -> None:
        if not self._said:
            say(f"out of memory: blocks that do not fit are computed in halves of their rows; images are {EQUAL}")
        self._said = True


class InHalves(Denoiser):
    """The same denoiser; a batch that does not fit is given to its network in halves, these again where they do not.

    Blocks, image numbers, noise and all that samplers and studies do with a batch stay as they are. Only what an allocator
    of torch says is caught; one row that does not fit ends in its error.
    """

    def __init__(self, denoiser: Denoiser, rows: Rows):
        super().__init__(denoiser.network, denoiser.process, denoiser.parameterization)
        self.rows = rows
        self.train(denoiser.training)

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """The network's raw output, `[B, C, H, W]`."""
        while True:
            try:
                return self._in_parts(x_t, t, -(-len(x_t) // self.rows.parts))
            except RuntimeError as error:
                if not out_of_memory(error) or self.rows.parts >= len(x_t):
                    raise
            self.rows.halve()  # here the error is gone, and with it what its frames held

    def _in_parts(self, x_t: Tensor, t: float | Tensor, at_once: int) -> Tensor:
        if at_once >= len(x_t):
            return super().output(x_t, t)
        ts = t.split(at_once) if isinstance(t, Tensor) and t.dim() else [t] * -(-len(x_t) // at_once)
        return torch.cat([super(InHalves, self).output(x, at) for x, at in zip(x_t.split(at_once), ts, strict=True)])
