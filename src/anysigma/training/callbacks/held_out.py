"""The held-out curve: L_γ on images the network never trained on, at the same (t, ε) every time."""

import torch
from lightning.pytorch import LightningModule, Trainer

from anysigma.data.images import from_uint8
from anysigma.diffusion.noise import stream
from anysigma.machine.distributed import rank_and_world
from anysigma.training.callbacks.base import Periodic, report


class HeldOut(Periodic):
    """Logs held_out/loss = L_γ/(T·d) of the averaged weights over at most `n` held-out images, every `every` steps.

    Image i gets t = 1 + ⌊(i + ½)·T/n⌋ of a fixed shuffle, and one fixed ε: the curve moves only with the weights.
    """

    metric = "held_out/loss"

    def __init__(self, every: int, n: int):
        super().__init__(every)
        self.n = n

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        report(trainer, {self.metric: self._loss(trainer, module)})

    @torch.inference_mode()
    def _loss(self, trainer: Trainer, module: LightningModule) -> float:
        images = trainer.datamodule.held_out[: self.n]
        generator = stream(module.seed, -1)
        order = torch.randperm(len(images), generator=generator)
        t = 1 + ((order + 0.5) * module.ema.process.T / len(images)).long()
        eps = torch.randn(images.shape, generator=generator)
        rank, world = rank_and_world()
        total = torch.zeros((), device=module.device, dtype=torch.float64)
        mine = range(rank, len(images), world)
        with trainer.precision_plugin.forward_context():
            for rows in torch.tensor(mine).split(module.block):
                batch = (tensor.to(module.device) for tensor in (from_uint8(images[rows]), t[rows], eps[rows]))
                total += module.objective(module.ema, *batch).double().sum()
        return (trainer.strategy.reduce(total, reduce_op="sum") / len(images)).item()
