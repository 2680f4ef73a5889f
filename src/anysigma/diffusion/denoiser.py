"""A trained (or exact) answer to the question: which noise is in x_t?"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps, Parameterization, Prediction
from anysigma.diffusion.schedules.base import NoiseSchedule


class Denoiser(nn.Module):
    """(x_t, t) → `Prediction(eps, x_0)`: a network read through its parameterisation.

    `network`: `(x_t [B, C, H, W], t long [B] in 1..T) → [B, C, H, W]`. Only the network holds parameters.
    A t between two steps reaches it as a float tensor. Raises ValueError where the parameterisation has no x_0 at some
    t of the process.
    """

    def __init__(self, network: nn.Module, process: GaussianProcess, parameterization: Parameterization):
        super().__init__()
        parameterization.check(process)
        self.network, self.process, self.parameterization = network, process, parameterization

    @staticmethod
    def of(eps: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule) -> "Denoiser":
        """A bare eps(x_t `[B, *shape]`, t long `[B]`) as a denoiser; a module brings its parameters and their device."""
        network = eps if isinstance(eps, nn.Module) else Function(eps)
        return Denoiser(network, GaussianProcess(schedule), Eps())

    @property
    def device(self) -> torch.device:
        """Where it computes: its first parameter's device, the CPU where it has none."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """The network's raw output in x_t's dtype (autocast may have computed it in a lower one)."""
        if not isinstance(t, Tensor):
            dtype = torch.long if isinstance(t, int) else torch.promote_types(x_t.dtype, torch.float32)
            t = x_t.new_full((len(x_t),), t, dtype=dtype)
        output = self.network(x_t, t)
        if output.shape != x_t.shape:  # it would be broadcast, and trained
            raise ValueError(
                f"the network answers {list(output.shape)} to x_t of shape {list(x_t.shape)}: it must be the same"
            )
        return output.to(x_t.dtype)

    def forward(self, x_t: Tensor, t: float | Tensor) -> Prediction:
        """ε_θ^(t)(x_t) and f_θ^(t)(x_t) (DDIM eq. 9), both `[B, C, H, W]`."""
        return self.parameterization.predict(self.process, self.output(x_t, t), x_t, t)

    def clipped(self, x_t: Tensor, t: float | Tensor) -> Prediction:
        """The prediction with x_0 held in [-1, 1], and the eps that x_t = √α_t x_0 + √(1-α_t) eps then demands."""
        return self.held(self(x_t, t), x_t, t)

    def held(self, prediction: Prediction, x_t: Tensor, t: float | Tensor) -> Prediction:
        """The same of a prediction that is there already."""
        x_0 = prediction.x_0.clamp(-1, 1)
        return Prediction(self.process.eps(x_t, t, x_0), x_0)


class Function(nn.Module):
    """A function of (x_t, t) where a network is expected; it holds no parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.function(x_t, t)
