"""The distance to real images every N steps, from the averaged weights."""

from lightning.pytorch import LightningModule, Trainer

from anysigma.data.images import to_uint8
from anysigma.diffusion.samplers.base import Sampler, at_most
from anysigma.machine.distributed import my_share, rank_and_world, spread
from anysigma.metrics.fidelity import Features, Monitor
from anysigma.training.callbacks.base import Periodic, report


class Distance(Periodic):
    """Logs distance/<metric> (fd_digits, fid) of `n` generated images against the training images, every `every` steps.

    `seed` names the noise. Every rank makes and measures its share. Small n is biased upward: the figure is for watching,
    within one run.
    """

    def __init__(self, every: int, n: int, sampler: Sampler, seed: int, features: Features):
        super().__init__(every)
        self.n, self.sampler, self.seed, self.features = n, sampler, seed, features
        self.metric = f"distance/{features.metric}"
        self._monitor: Monitor | None = None

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        if self._monitor is None:
            self._monitor = Monitor(self.features, module.shape, module.device)
            rank, world = rank_and_world()
            self._monitor.update(trainer.datamodule.train[rank::world], real=True)
        block = spread(self.n, module.block)
        ks = my_share(range(self.n), block)
        if ks:
            images = module.sample(ks, at_most(self.sampler, module.ema.process.T), self.seed, block)
            self._monitor.update(to_uint8(images), real=False)
        report(trainer, {self.metric: self._monitor.compute()})
