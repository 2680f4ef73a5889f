"""A study on a checkpoint, from its objects to its files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from anysigma.data.datamodule import ImageDataModule
from anysigma.denoiser import Denoiser
from anysigma.hardware import Hardware
from anysigma.metrics.fidelity import Features
from anysigma.pictures import save_png, shown
from anysigma.samplers.base import Sampler
from anysigma.studies.base import Model, Study, write_results


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

    def run(self, study: Study, sampler: Sampler, folder: Path) -> None:
        """Run the study, write results.json and the pictures, print what was found."""
        self.data.setup()
        features = self.features()
        parameters = sum(p.numel() for p in self.denoiser.parameters())
        hardware = self.hardware.resolved(self.data.shape, parameters)
        fabric = Fabric(**hardware.lightning())
        fabric.launch()
        hardware.apply(self.denoiser.network)
        denoiser = self.denoiser.to(fabric.device)
        model = Model(denoiser, self.data.shape, {**self.card, "precision": hardware.precision})
        with fabric.autocast():
            result = study.run(model, sampler, self.data, features, folder)
        if fabric.is_global_zero:
            pictures = [save_png(picture, folder / f"{name}.png") for name, picture in result.pictures.items()]
            write_results(folder / "results.json", [result], lines=result.lines, pictures=[str(p) for p in pictures])
            print("\n".join([*result.lines, *map(shown, pictures), f"folder   {shown(folder)}"]))
