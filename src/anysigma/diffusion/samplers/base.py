"""What every sampler shares: the loop over pairs (t, s) of a τ, what it remembers, images by blocks, its card."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import ImageNoise
from anysigma.diffusion.parameterizations import Parameterization, Prediction
from anysigma.diffusion.samplers.amplification import LIMIT, Amplified, per_output, refuse
from anysigma.diffusion.samplers.tau import Explicit, TauRule, UpTo, tau_rule

Noise = Callable[[], Tensor]

# Above this α_t, q(x_t) is visibly not N(0, I) and pure noise is no valid start there.
SIGNAL_LEFT = 1e-2


class Step(NamedTuple):
    """One step t → s: the state it reached, and the x_0 and eps predicted at t; all `[B, *shape]`."""

    t: int
    s: int
    x_s: Tensor
    x_0: Tensor
    eps: Tensor


class Sampler(Protocol):
    """x_T → x_0 along τ with a given denoiser."""

    def pairs(self, T: int) -> list[tuple[int, int]]:
        """The steps (t, s) from the top down; the last has s = 0. Raises ValueError where T does not allow them."""
        ...

    def evaluations(self, T: int) -> int:
        """How often the network is asked for one image."""
        ...

    def check(self, q: GaussianProcess, parameterization: Parameterization) -> None:
        """Raises ValueError where q does not allow the steps, `Amplifies` where one makes too much of the output's error."""
        ...

    def trajectory(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Iterator[Step]:
        """Every step as it is made; `noise()` returns ε of x_T's shape and is called only where noise is added."""
        ...

    def __call__(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Tensor:
        """x_0, `[B, *shape]`, about [-1, 1]."""
        ...


@dataclass(frozen=True, kw_only=True)
class AlongTau:
    """A sampler along a sub-sequence τ of 1..T; a solver is a subclass that writes `step`.

    `steps` S: how many of the T steps (null: all); `tau`: a τ rule or an explicit list, which brings its own S;
    `clip`: predicted x_0 is clipped to [-1, 1] and eps derived from it again. A solver adds fields of its own, and says
    in `memory` how many of the last steps it wants to see. `limit`: an unclipped step that multiplies the error of the
    network's output by more is refused; null: none is, which is for looking at such a step.
    Raises ValueError for S < 1 and, once T is known, for S > T; `Amplifies` before the first step.
    """

    steps: int | None
    tau: TauRule | Sequence[int]
    clip: bool
    limit: float | None = LIMIT

    memory: ClassVar[int] = 0

    def __post_init__(self):
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"sampler.steps={self.steps}: at least 1 step is needed")
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"sampler.limit={self.limit}: a number above 0, or null")
        object.__setattr__(self, "tau", tau_rule(self.tau))

    def step(self, denoiser: Denoiser, x_t: Tensor, t: int, s: int, noise: Noise, before: tuple[Step, ...]) -> Step:
        """One step t → s, s < t. `before`: the last steps that moved, newest first, at most `memory` of them."""
        raise NotImplementedError

    def amplification(
        self, q: GaussianProcess, parameterization: Parameterization, t: int, s: int, before: tuple[int, ...]
    ) -> float:
        """By how much an unclipped step t → s multiplies the error of the network's output in x_s; here DDIM's, σ = 0.

        `before`: the t of the last steps. A solver whose step is not linear in x_0 and eps as DDIM's is says its own.
        """
        return per_output(q, parameterization, t, s)

    def amplified(self, q: GaussianProcess, parameterization: Parameterization) -> list[Amplified]:
        """`amplification` of every step that moves, from the top down; none where predicted x_0 is clipped."""
        moving = [(t, s) for t, s in self.pairs(q.T) if s != t and not self.clip]
        seen = [tuple(t for t, _ in moving[max(0, i - self.memory) : i][::-1]) for i in range(len(moving))]
        return [
            Amplified(self.amplification(q, parameterization, t, s, before), t, s)
            for (t, s), before in zip(moving, seen, strict=True)
        ]

    def check(self, q: GaussianProcess, parameterization: Parameterization) -> None:
        """Raises ValueError where T does not allow the steps, `Amplifies` where an unclipped one goes beyond `limit`."""
        self.pairs(q.T)
        refuse(self, q, parameterization, lambda sampler, read: sampler.amplified(q, read), ["sampler.clip=true"])

    def predict(self, denoiser: Denoiser, x_t: Tensor, t: int) -> Prediction:
        """What the denoiser sees in x_t, clipped where `clip` says so."""
        return denoiser.clipped(x_t, t) if self.clip else denoiser(x_t, t)

    def pairs(self, T: int) -> list[tuple[int, int]]:
        """The steps (t, s) from the top down, S of them, the last with s = 0."""
        S = T if self.steps is None else self.steps
        if isinstance(self.tau, Explicit):
            return pairs(self.tau(S, T))
        if S > T:
            raise ValueError(f"sampler.steps={S} is more than schedule.T={T}: at most T steps can be visited")
        return pairs(self.tau(S, T) if S < T or isinstance(self.tau, UpTo) else range(1, T + 1))

    def evaluations(self, T: int) -> int:
        """How often the network is asked for one image: S, for a solver that asks once a step."""
        return len(self.pairs(T))

    def trajectory(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Iterator[Step]:
        """Every step as it is made, from x_T at τ_S down to s = 0; s = t (a repeat in τ) is the identity."""
        self.check(denoiser.process, denoiser.parameterization)
        along = self.pairs(denoiser.process.T)
        warn_of_signal(denoiser.process.alpha(along[0][0]).item(), along[0][0])
        x_t, before = x_T, ()
        for t, s in along:
            if s == t:
                eps, x_0 = self.predict(denoiser, x_t, t)
                yield Step(t, s, x_t, x_0, eps)
                continue
            step = self.step(denoiser, x_t, t, s, noise, before)
            x_t, before = step.x_s, (step, *before)[: self.memory]
            yield step

    def __call__(self, denoiser: Denoiser, x_T: Tensor, noise: Noise) -> Tensor:
        """x_0, `[B, *shape]`."""
        for step in self.trajectory(denoiser, x_T, noise):
            x_T = step.x_s
        return x_T


def pairs(tau: Sequence[int]) -> list[tuple[int, int]]:
    """Rising τ → [(τ_S, τ_{S-1}), …, (τ_2, τ_1), (τ_1, 0)]: each pair from one list, no t - 1."""
    return list(zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True))


def warn_of_signal(alpha: float, t: int) -> None:
    """One line where a start at pure noise is not a sample of q(x_t)."""
    if alpha > SIGNAL_LEFT:
        warnings.warn(
            f"sampling starts at t={t} where α={alpha:.3g} > {SIGNAL_LEFT}: pure noise is no valid start there",
            stacklevel=3,
        )


def at_most(sampler: Sampler, T: int) -> Sampler:
    """The sampler with S = min(steps, T): for watching a run, whatever its T."""
    if not isinstance(sampler, AlongTau) or sampler.steps is None:
        return sampler
    return replace(sampler, steps=min(sampler.steps, T))


@torch.inference_mode()
def generate(
    denoiser: Denoiser, sampler: Sampler, ks: Sequence[int], shape: Sequence[int], *, seed: int, block: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Images k in `ks` as (their numbers, x_0 `[n, *shape]`), block by block.

    Image k is always computed at row k % block of block k // block, its neighbours being those of that block, so
    the same k gives the same image whatever else is asked for. Rows nobody asked for are computed and dropped.
    """
    wanted = set(ks)
    for b in sorted({k // block for k in wanted}):
        numbers = range(b * block, (b + 1) * block)
        noise = ImageNoise(numbers, shape, seed, denoiser.device)
        x_0 = sampler(denoiser, noise(), noise)
        rows = [i for i, k in enumerate(numbers) if k in wanted]
        yield [numbers[i] for i in rows], x_0[rows]


def describe(sampler: Sampler, T: int) -> dict[str, Any]:
    """What a sampler is, as plain values: its class, S of its pairs, and every other dataclass field, its own first.

    A nested dataclass is written as its repr. Raises ValueError for what could not be told from another.
    """
    if not is_dataclass(sampler):
        raise ValueError(f"{type(sampler).__name__} is no dataclass: a figure's card could not say what it is")
    own_first = sorted(fields(sampler), key=lambda field: field.name in AlongTau.__dataclass_fields__)
    facts = {field.name: getattr(sampler, field.name) for field in own_first if field.name != "steps"}
    facts = {name: value if plain(value) else written(value, name) for name, value in facts.items()}
    return {"sampler": type(sampler).__name__, "S": len(sampler.pairs(T)), **facts}


def plain(value: Any) -> bool:
    """Whether JSON holds it as it is."""
    return isinstance(value, bool | int | float | str | None) or (isinstance(value, list | tuple) and all(map(plain, value)))


def written(value: Any, name: str) -> str:
    """A dataclass as the repr of all its fields, whatever its own __repr__ leaves out."""
    if plain(value):
        return repr(value)
    if not is_dataclass(value):
        kind = type(value).__name__
        raise ValueError(f"sampler.{name} is of {kind}: a figure's card takes plain values and dataclasses; make {kind} one")
    inner = (f"{field.name}={written(getattr(value, field.name), name)}" for field in fields(value))
    return f"{type(value).__name__}({', '.join(inner)})"
