"""What the network's output stands for, and how it becomes the pair (eps, predicted x_0)."""

from typing import NamedTuple, Protocol

from torch import Tensor

from anysigma.gaussian import GaussianProcess


class Prediction(NamedTuple):
    """The two faces of one prediction at (x_t, t), tied by x_t = √α_t x_0 + √(1-α_t) eps; both `[B, *shape]`."""

    eps: Tensor  # ε_θ^(t)(x_t)
    x_0: Tensor  # f_θ^(t)(x_t), DDIM eq. 9


class Parameterization(Protocol):
    """A network output o, its training target, and eps_scale: an output error e is an eps error of eps_scale · e."""

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What o should be, `[B, *shape]`."""
        ...

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The prediction that o stands for."""
        ...

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """float64 `[B]`."""
        ...


class Eps:
    """The network predicts the noise: o = ε_θ, DDPM section 3.2."""

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """eps itself."""
        return eps

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """eps = o, x_0 = (x_t - √(1-α_t) o)/√α_t."""
        return Prediction(eps=output, x_0=q.x_0(x_t, t, output))

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """1."""
        return q.alpha(t).new_ones(t.shape)
