"""What a study is, what it is given, and what it answers where it cannot be made."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

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


class CannotServe(ValueError):
    """This study has no use for what it was given, a sampler above all: alone it ends in this line, study=all goes on."""


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """Something evaluate.py can do with a checkpoint. It may ask for less than it is given.

    `order`: its place in study=all, from the lowest on; null: it is not part of it.
    """

    order: int | None = None

    needs_checkpoint: ClassVar[bool] = True
    needs_features: ClassVar[bool] = False
    draws_without: ClassVar[bool] = False  # whether it has something to show where its features cannot be had
    in_float32: ClassVar[bool] = False  # whether it asks for more digits than a bfloat16 network has

    def results(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Iterator[Result]:
        """`run`, one result after the other; raises CannotServe where the features that it needs are None."""
        if features is None and self.needs_features and not self.draws_without:
            raise CannotServe("there are no features to measure in")
        if not self.in_float32:
            yield from self._each(model, sampler, data, features, folder)
            return
        with torch.autocast(model.denoiser.device.type, enabled=False):
            model = replace(model, card={**model.card, "precision": "32-true"})
            yield from self._each(model, sampler, data, features, folder)

    def _each(self, *given: Any) -> Iterator[Result]:
        found = self.run(*given)
        yield from [found] if isinstance(found, Result) else found

    @abstractmethod
    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Result | Iterable[Result]:
        """Do it; whatever is kept on disk lies below `folder`. Every process calls it; rank 0's Result counts.

        Raises CannotServe where it cannot be made with this sampler or these data.
        """
