"""What a step makes of the network's error, and the refusal of steps that make too much of it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Parameterization, V
from anysigma.diffusion.samplers.tau import Trailing, Uniform

if TYPE_CHECKING:
    from anysigma.diffusion.samplers.base import AlongTau

# An unclipped step that multiplies the error of the network's output by more is refused. Where x_t is noise a good network
# is off by some hundredths: ten times that is no longer small beside x_s, which then is like nothing it was trained on.
LIMIT = 10.0


class Amplifies(ValueError):
    """An unclipped step multiplies the error of the network's output by more than the sampler's limit."""


class Amplified(NamedTuple):
    """By how much the step t → s multiplies the error of the network's output."""

    factor: float
    t: int
    s: int


# What a sampler's steps make of the error of a network that is read through a parameterisation.
Steps = Callable[["AlongTau", Parameterization], Sequence[Amplified]]


def per_output(q: GaussianProcess, parameterization: Parameterization, t: int, s: int, sigma: float = 0.0) -> float:
    """|∂x_s/∂o| = v_scale(t) |√α_t √(1-α_s-σ²) - √(1-α_t) √α_s| of the generalised step, o the network's output at t.

    With √α = cos θ and σ = 0 it is v_scale(t) |sin(θ_t - θ_s)|: at most 1 for v; eps divides it by √α_t, which is small
    where x_t is noise, x_0 by √(1-α_t), which is small near t = 0. So downward (s < t) eps alone exceeds 1, upward x_0.
    """
    return (parameterization.v_scale(q, torch.tensor([t])) * q.per_v(t, s, sigma)).abs().item()


def refuse(sampler: "AlongTau", q: GaussianProcess, read: Parameterization, steps: Steps, ways: Sequence[str]) -> None:
    """Raises `Amplifies`, with the worst step and what would do, where one of `steps` goes beyond the sampler's limit.

    `read`: the network's parameterisation; `ways`: words that would do besides another τ and another parameterisation.
    """
    if sampler.limit is None or within(found := steps(sampler, read), sampler.limit):
        return
    factor, t, s = max(found)
    ways = [*ways, *other_tau(sampler, q.T, lambda other: steps(other, read))]
    ways += ["a run with parameterization=v"] if within(steps(sampler, V()), sampler.limit) else []
    raise Amplifies(
        f"the unclipped step from t={t} to {s} multiplies the network's error by {factor:.3g}, more than"
        f" sampler.limit={sampler.limit:g}; say {', or '.join(ways) or 'another sampler.tau'}"
    )


def within(found: Sequence[Amplified], limit: float) -> bool:
    """Whether no step goes beyond the limit."""
    return all(one.factor <= limit for one in found)


def other_tau(sampler: "AlongTau", T: int, steps: Callable[["AlongTau"], Sequence[Amplified]]) -> list[str]:
    """The words for a τ rule that stays within the limit at the same S, or at T/2 where S is T; none for a single step."""
    S = len(sampler.pairs(T))
    S = S if S < T else T // 2
    for word, rule in {"uniform": Uniform(), "trailing": Trailing()}.items():
        if S > 1 and within(steps(replace(sampler, tau=rule, steps=S)), sampler.limit):
            words = {f"sampler/tau={word}": sampler.tau != rule, f"sampler.steps={S}": sampler.steps != S}
            return [" ".join(one for one, needed in words.items() if needed)]
    return []
