"""Studies on a checkpoint, from their objects to their files."""

from collections.abc import Callable
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from anysigma.data.datamodule import ImageDataModule
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.base import Sampler
from anysigma.evaluation.record import Record
from anysigma.machine.hardware import Hardware
from anysigma.metrics.fidelity import Features
from anysigma.studies.all import results_of
from anysigma.studies.base import Model, Study, weights_digest


class Evaluation:
    """A denoiser, its data and its features on some hardware; `card` is what every figure must say of them."""

    def __init__(
        self,
        denoiser: Denoiser,
        data: ImageDataModule,
        features: Callable[[], Features],
        hardware: Hardware,
        card: dict[str, Any],
    ):
        self.denoiser, self.data, self.features, self.hardware, self.card = denoiser, data, features, hardware, card

    def run(self, study: Study, sampler: Sampler, record: Record) -> None:
        """Run the study; every result is recorded as soon as it stands."""
        self.data.setup()
        features = self.features() if study.needs_features else None
        parameters = sum(p.numel() for p in self.denoiser.parameters())
        hardware = self.hardware.resolved(self.data.shape, parameters)
        fabric = Fabric(**hardware.lightning())
        fabric.launch()
        hardware.apply(self.denoiser.network)
        denoiser = self.denoiser.to(fabric.device)
        if isinstance(features, nn.Module):
            features.to(fabric.device)
        card = {**self.card, "weights_sha256": weights_digest(denoiser), "precision": hardware.precision}
        model = Model(denoiser, self.data.shape, card)
        with fabric.autocast():
            found = study.run(model, sampler, self.data, features, record.folder)
            for result in results_of(found):
                if fabric.is_global_zero:
                    record.add(result)
        if fabric.is_global_zero:
            record.close()
        fabric.barrier()
