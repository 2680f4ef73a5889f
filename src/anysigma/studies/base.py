"""What a study is given and what it returns."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.base import Sampler
from anysigma.report.results import Result


@dataclass(frozen=True)
class Model:
    """A denoiser ready to be sampled, and what every figure made with it must say.

    `shape` (C, H, W); `card`: weights, step, schedule, precision.
    """

    denoiser: Denoiser
    shape: Sequence[int]
    card: dict[str, Any]


class Study(Protocol):
    """Something evaluate.py can do with a checkpoint. It may ask for less than it is given."""

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = True

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result | Iterable[Result]:
        """Do it; whatever is kept on disk lies below `folder`. Every process calls it; rank 0's Result counts."""
        ...
