"""A grid of images every N steps, from the same seeds each time: one sees them form."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler, at_most
from anysigma.machine.distributed import gathered, my_share, spread
from anysigma.report.pictures import grid, save_png
from anysigma.training.callbacks.base import Periodic, report_image


class Grid(Periodic):
    """`n` images by `sampler` from the averaged weights, every `every` steps, as samples/step-<step>.png.

    `seed` names the noise. A sampler of more steps than T takes all T. Every rank makes its share.
    """

    def __init__(self, every: int, n: int, sampler: Sampler, seed: int):
        super().__init__(every)
        self.n, self.sampler, self.seed = n, sampler, seed

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        block = spread(self.n, module.block)
        ks = my_share(range(self.n), block)
        images = gathered(ks, to_uint8(module.sample(ks, at_most(self.sampler, module.ema.process.T), self.seed, block)))
        if trainer.is_global_zero:
            picture = grid(images)
            save_png(picture, Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:07d}.png")
            report_image(trainer, "samples/grid", picture)
