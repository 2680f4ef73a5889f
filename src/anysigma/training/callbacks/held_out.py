"""The held-out curve: L_γ on images the network never trained on, at the same (t, ε) every time."""

import torch
from lightning.pytorch import LightningModule, Trainer

from anysigma.data.images import from_uint8
from anysigma.diffusion.noise import Draws
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
        everyone = torch.arange(len(images))
        order = Draws(module.seed, "held out", "t").uniform(everyone).argsort()
        t = 1 + ((order + 0.5) * module.ema.process.T / len(images)).long()
        noise = Draws(module.seed, "held out", "eps")
        rank, world = rank_and_world()
        total = torch.zeros((), device=module.device, dtype=torch.float64)
        with trainer.precision_plugin.forward_context():
            for rows in everyone[rank::world].split(module.block):
                x_0, at = from_uint8(images[rows].to(module.device)), t[rows].to(module.device)
                eps = noise.normal(rows.to(module.device), images.shape[1:])
                total += module.objective(module.ema, x_0, at, eps).double().sum()
        return (trainer.strategy.reduce(total, reduce_op="sum") / len(images)).item()
