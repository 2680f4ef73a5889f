"""What the network's output stands for, and how it becomes the pair (eps, predicted x_0)."""

from typing import NamedTuple, Protocol

from torch import Tensor

from anysigma.diffusion.gaussian import GaussianProcess, like


class Prediction(NamedTuple):
    """The two faces of one prediction at (x_t, t), tied by x_t = √α_t x_0 + √(1-α_t) eps; both `[B, *shape]`."""

    eps: Tensor  # ε_θ^(t)(x_t)
    x_0: Tensor  # f_θ^(t)(x_t), DDIM eq. 9


class Parameterization(Protocol):
    """A network output o, its training target, and what an output error e weighs in eps and in v.

    An output error e is an eps error of eps_scale · e and a v error of v_scale · e; eps_scale = √α_t v_scale.
    """

    def check(self, q: GaussianProcess) -> None:
        """Raises ValueError where o does not give x_0 at every t of q."""
        ...

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What o should be, `[B, *shape]`."""
        ...

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """The prediction that o stands for."""
        ...

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """float64 `[B]`."""
        ...

    def v_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """float64 `[B]`; unlike eps_scale it does not vanish at α_T = 0."""
        ...


class Eps:
    """The network predicts the noise: o = ε_θ, DDPM section 3.2."""

    def check(self, q: GaussianProcess) -> None:
        """At α_T = 0, x_T is the noise: to predict it says nothing about x_0."""
        if q.alpha(q.T) == 0:
            raise ValueError("parameterization=eps has no x_0 at α_T = 0 (zero_terminal_snr); use parameterization=v")

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """eps itself."""
        return eps

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """eps = o, x_0 = (x_t - √(1-α_t) o)/√α_t."""
        return Prediction(eps=output, x_0=q.x_0(x_t, t, output))

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """1."""
        return q.alpha(t).new_ones(t.shape)

    def v_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """1/√α_t."""
        return q.alpha(t).rsqrt()


class X0:
    """The network predicts the image: o = f_θ, DDPM section 3.2; defined at α_T = 0 too."""

    def check(self, q: GaussianProcess) -> None:
        """Every schedule will do."""

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_0 itself."""
        return x_0

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """x_0 = o, eps = (x_t - √α_t o)/√(1-α_t)."""
        return Prediction(eps=q.eps(x_t, t, output), x_0=output)

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """√α_t/√(1-α_t)."""
        a = q.alpha(t)
        return (a / (1 - a)).sqrt()

    def v_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """1/√(1-α_t)."""
        return (1 - q.alpha(t)).rsqrt()


class V:
    """The network predicts v = √α_t eps - √(1-α_t) x_0, Salimans & Ho 2022 section 4; defined at α_T = 0 too."""

    def check(self, q: GaussianProcess) -> None:
        """Every schedule will do."""

    def target(self, q: GaussianProcess, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """√α_t eps - √(1-α_t) x_0."""
        a = q.alpha(t)
        return like(a.sqrt(), x_0) * eps - like((1 - a).sqrt(), x_0) * x_0

    def predict(self, q: GaussianProcess, output: Tensor, x_t: Tensor, t: int | Tensor) -> Prediction:
        """eps = √(1-α_t) x_t + √α_t o, x_0 = √α_t x_t - √(1-α_t) o."""
        a = q.alpha(t)
        signal, noise = like(a.sqrt(), x_t), like((1 - a).sqrt(), x_t)
        return Prediction(eps=noise * x_t + signal * output, x_0=signal * x_t - noise * output)

    def eps_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """√α_t."""
        return q.alpha(t).sqrt()

    def v_scale(self, q: GaussianProcess, t: Tensor) -> Tensor:
        """1."""
        return q.alpha(t).new_ones(t.shape)
