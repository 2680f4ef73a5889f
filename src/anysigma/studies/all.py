"""Several studies in one process, one after the other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anysigma.diffusion.samplers.amplification import Amplifies
from anysigma.diffusion.samplers.base import Sampler
from anysigma.machine.distributed import say
from anysigma.report.results import Result
from anysigma.studies.base import CannotServe, Model, Study


@dataclass(frozen=True)
class All(Study):
    """`studies` by name, in their order; each result is on disk before the next study begins.

    One that cannot be made with what it is given leaves a line in its place; any other failure ends them all.
    """

    studies: Mapping[str, Study]

    def __post_init__(self):
        if not self.studies:
            raise ValueError("study.studies={}: at least one study is needed")

    draws_without = True  # those that need none

    @property
    def needs_checkpoint(self) -> bool:
        """Whether any of them does."""
        return any(study.needs_checkpoint for study in self.studies.values())

    @property
    def needs_features(self) -> bool:
        """Whether any of them does."""
        return any(study.needs_features for study in self.studies.values())

    def run(self, model: Model, sampler: Sampler, data: Any, features: Any, folder: Path) -> Iterator[Result]:
        """Every study's results as they stand; shards of generated images are shared among them."""
        for number, (name, study) in enumerate(self.studies.items(), 1):
            say(f"\n{number}/{len(self.studies)} {name}")
            try:
                yield from study.results(model, sampler, data, features, folder)
            except (CannotServe, Amplifies) as why:
                yield Result(name, lines=[f"skipped: {why}"])
