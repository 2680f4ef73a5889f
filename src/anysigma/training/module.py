"""Training as Lightning sees it."""

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.noise import Draws, stream_seed
from anysigma.diffusion.objective import LGamma
from anysigma.diffusion.samplers.base import Sampler, generate
from anysigma.machine.distributed import is_first
from anysigma.training.clipping import Clipping
from anysigma.training.ema import EMA


class DiffusionModule(LightningModule):
    """The ε network under L_γ, with the moving average that is sampled from.

    `optimizer`: parameters → optimiser; `ema`: denoiser → EMA; `warmup`: steps over which the learning rate rises
    linearly from 0; `seed`: t and ε of position p of the stream of images are a function of (seed, p) alone, so that any
    number of processes and micro-steps train alike; dropout of micro-step i on rank r is one of (seed, r, i);
    `block`: images sampled at once. `images_seen` counts training images, of all processes. `gradient_norm`: before it was
    clipped, of all processes' gradient; `leaves_out`: norm → whether the step is left out.
    """

    def __init__(
        self,
        sampler: Sampler,
        denoiser: Denoiser,
        objective: LGamma,
        optimizer: Callable[..., torch.optim.Optimizer],
        ema: Callable[[Denoiser], EMA],
        shape: Sequence[int],
        warmup: int,
        seed: int,
        block: int,
    ):
        super().__init__()
        sampler.check(denoiser.process, denoiser.parameterization)  # refuses S > T before anything is loaded
        warn_of_untrained_start(denoiser, objective)
        self.denoiser, self.objective, self.sampler, self.optimizer = denoiser, objective, sampler, optimizer
        self.ema = ema(denoiser)
        self.shape, self.warmup, self.seed, self.block = tuple(shape), warmup, seed, block
        self.draws_of_t, self._eps = Draws(seed, "t"), Draws(seed, "eps")
        self.images_seen, self.fused, self.left_out = 0, False, False
        self.leaves_out: Callable[[Tensor], bool] = lambda norm: False

    def training_step(self, x_0: Tensor, batch_idx: int) -> Tensor:
        """An estimate of L_γ/(T·d) on this process's share of micro-step `batch_idx`, `[b, C, H, W]`."""
        torch.manual_seed(stream_seed(self.seed, self.global_rank, batch_idx))  # dropout
        batch, mine = self.positions(len(x_0), batch_idx)
        t, weight = self.objective.draw_t(self.draws_of_t.uniform(batch), self.denoiser.process.T)  # a rule may want all u
        eps = self._eps.normal(batch[mine], x_0.shape[1:])
        return telling((weight[mine] * self.objective(self.denoiser, x_0, t[mine], eps)).mean())

    def positions(self, b: int, i: int) -> tuple[Tensor, slice]:
        """Where in the stream of images the batch of micro-step i lies, long `[B]`, and which b of these are this rank's."""
        world, micro_steps = self.trainer.world_size, self.trainer.accumulate_grad_batches
        first, B = (self.trainer.datamodule.taken(i) * world + self.global_rank) * b, b * world * micro_steps
        start = first % B
        return torch.arange(first - start, first - start + B, device=self.device), slice(start, start + b)

    def configure_optimizers(self) -> dict:
        """The optimiser over the trained weights alone, with a linear warm-up."""
        optimizer = self.optimizer_over(self.denoiser.parameters(), self.fused)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / max(1, self.warmup)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warm_up, "interval": "step"}}

    def optimizer_over(self, parameters: Iterable[Tensor], fused: bool) -> torch.optim.Optimizer:
        """The optimiser over these, in its fused form where that is asked for and there is one."""
        form = {"fused": True, "foreach": None} if fused and self.has_fused else {}
        return self.optimizer(parameters, **{name: value for name, value in form.items() if name in self._takes})

    @property
    def has_fused(self) -> bool:
        """Whether the optimiser has a fused form."""
        return "fused" in self._takes

    @property
    def _takes(self) -> Collection[str]:
        return inspect.signature(getattr(self.optimizer, "func", self.optimizer)).parameters

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None, gradient_clip_algorithm: str | None
    ) -> None:
        """As the trainer says, whatever the optimiser's form; without gradients, no optimiser changes anything."""
        self.gradient_norm = Clipping(gradient_clip_val, gradient_clip_algorithm or "norm")(optimizer)
        self.left_out = self.leaves_out(self.gradient_norm)
        if self.left_out:
            optimizer.zero_grad()

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        """One optimiser step and, right after it, one step of the average, unless it is left out."""
        k = self.global_step
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not self.left_out:
            self.ema.update(self.denoiser, k)
        self.images_seen += self.trainer.datamodule.batch_size

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Every file holds the images seen, the weights-only ones too."""
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The count goes on."""
        self.images_seen = checkpoint["images_seen"]

    def sample(self, ks: Sequence[int], sampler: Sampler | None = None, seed: int = 0, block: int | None = None) -> Tensor:
        """Images k in `ks`, `[n, C, H, W]` about [-1, 1], from the averaged weights, `block` at once."""
        with self.trainer.precision_plugin.forward_context():
            blocks = generate(self.ema, sampler or self.sampler, ks, self.shape, seed=seed, block=block or self.block)
            return torch.cat([torch.empty(0, *self.shape, device=self.device), *(x_0.float() for _, x_0 in blocks)])


def telling(loss: Tensor) -> Tensor:
    """The same loss; where it is not finite, neither is its gradient, and so neither is that of any other process."""
    return loss * torch.where(loss.detach().isfinite(), torch.ones_like(loss.detach()), torch.nan)


def warn_of_untrained_start(denoiser: Denoiser, objective: LGamma) -> None:
    """One line where t = T has no weight in L_γ, as with every bounded γ at α_T = 0: the network learns nothing there."""
    q, parameterization = denoiser.process, denoiser.parameterization
    weight = objective.gamma.weight(q, torch.tensor([q.T]), parameterization)
    if weight == 0 and is_first():
        warnings.warn(
            f"{type(objective.gamma).__name__} gives t = {q.T} no weight (α_T = 0, parameterization"
            f" {type(parameterization).__name__}): a sampler that starts there starts from an untrained step;"
            " objective=v_mse trains it",
            stacklevel=3,
        )
