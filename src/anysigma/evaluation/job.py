"""The one way to a figure: a study on a checkpoint's denoiser, from train.py and from evaluate.py."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from anysigma.data.datamodule import ImageDataModule
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.base import Sampler
from anysigma.evaluation.record import Record
from anysigma.machine.choice import for_sampling
from anysigma.machine.distributed import say
from anysigma.machine.hardware import Hardware
from anysigma.machine.waiting import Patience
from anysigma.metrics.features import NoFeatures
from anysigma.metrics.fidelity import Features
from anysigma.report.results import Result
from anysigma.runs.checkpoint import weights_digest
from anysigma.studies.all import All
from anysigma.studies.base import CannotServe, Model, Study
from anysigma.studies.halves import InHalves, Rows
from anysigma.training.together import Measuring


class Evaluation:
    """A denoiser, its data and its features on some hardware; `card` is what every figure must say of them.

    `data_hash`: of the images that it was trained on; other images are refused (ValueError). `record`: what its checkpoint
    says of the hardware: figures are made with what it samples with.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        data: ImageDataModule,
        features: Callable[[], Features],
        hardware: Hardware,
        card: dict[str, Any],
        data_hash: str | None = None,
        record: Any = None,
    ):
        self.denoiser, self.data, self.features, self.hardware, self.card = denoiser, data, features, hardware, card
        self.data_hash, self.record = data_hash, record

    def run(self, study: Study, sampler: Sampler, record: Record, *, without_features: bool = False) -> None:
        """Run the study; every result is recorded as soon as it stands.

        `without_features`: where they cannot be had, say so and go on with what needs none. Raises NoFeatures else.
        """
        record.hold()
        self.data.setup()
        self.data.hold_to(self.data_hash)
        without_features = without_features or isinstance(study, All)  # which leaves a line where it needs them
        features = self._features(study, without_features)
        digest = weights_digest(self.denoiser.state_dict())
        fabric, hardware = self._launched({"what is done": "figures", "step": self.card["step"], "weights": digest})
        if isinstance(features, nn.Module):
            features.to(fabric.device)
        card = {**self.card, "weights_sha256": digest, "precision": hardware.computes, "shape": list(self.data.shape)}
        card["memory_format"] = hardware.memory_format
        rows = Rows()
        model = Model(InHalves(self.denoiser, rows).to(fabric.device), self.data.shape, card)
        if fabric.is_global_zero:
            lacking = features is None and study.needs_features
            made_of = {"step": self.card["step"], "weights_sha256": digest, "precision": hardware.computes}
            record.begin(**made_of, lacks_features=lacking)
        with fabric.autocast(), Patience(hardware.timeout) as others:
            for result in self._results(study, model, sampler, features, record, without_features):
                others.wait()  # for what the first does alone
                rows.mark(result, fabric.device)
                if fabric.is_global_zero:
                    record.add(result)
            if fabric.is_global_zero:
                record.close()
            others.wait()
            fabric.barrier()  # the first process keeps the store in which the others look

    def _results(
        self, study: Study, model: Model, sampler: Sampler, features: Features | None, record: Record, without: bool
    ) -> Iterator[Result]:
        """The study's; a line in their place where it cannot do without features and may have to."""
        try:
            yield from study.results(model, sampler, self.data, features, record.folder)
        except CannotServe as why:
            if not (without and features is None):
                raise
            yield Result(type(study).__name__.lower(), lines=[f"not measured: {why}"])

    def _features(self, study: Study, without: bool) -> Features | None:
        if not study.needs_features:
            return None
        try:
            return self.features()
        except (NoFeatures, FileNotFoundError) as error:
            if not without:
                raise
            say(f"no distance: {error}")
            return None

    def _launched(self, facts: dict[str, Any]) -> tuple[Fabric, Hardware]:
        hardware = for_sampling(self.hardware.placed(), self.denoiser.network, self.data.shape, self.record)
        fabric = Fabric(**hardware.lightning(partial(Measuring, lambda: facts)))
        fabric.launch()
        hardware.follow(hardware.apply(self.denoiser.network))
        return fabric, hardware
