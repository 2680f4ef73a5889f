"""Which samplers a study shows: those it has and the given one, at which S, under which names."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from anysigma.diffusion.samplers.base import AlongTau, Sampler, describe
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Explicit
from anysigma.report.figures import phrase, said, varying
from anysigma.studies.base import CannotServe


def lineup(samplers: Mapping[str, Sampler], given: Sampler) -> dict[str, Sampler]:
    """`samplers` with the given one, in the place of one that it equals but for S, else as the last, "given"."""
    place = next((name for name, one in samplers.items() if _but_for_S(one) == _but_for_S(given)), "given")
    return {**samplers, place: given}


def _but_for_S(sampler: Sampler) -> Sampler:
    return replace(sampler, steps=None) if isinstance(sampler, AlongTau) else sampler


def fixed(sampler: Sampler) -> bool:
    """Whether its S is its own: its τ is one list, or it is no sampler along a τ."""
    return not isinstance(sampler, AlongTau) or isinstance(sampler.tau, Explicit)


def each_S(sampler: Sampler, steps: Sequence[int], T: int) -> list[int]:
    """The S of `steps` that T allows, rising, or T where it allows none. Raises CannotServe where S is the sampler's own."""
    if fixed(sampler):
        raise CannotServe("this study compares several S, and sampler.tau is one list; use a rule: sampler/tau=uniform")
    if not steps or min(steps) < 1:
        raise ValueError(f"study.steps={list(steps)}: at least one S, and at least 1 step each, is needed")
    return sorted({S for S in steps if S <= T}) or [T]


def at_S(sampler: Sampler, S: int) -> Sampler:
    """The sampler in S steps; one whose S is its own as it is."""
    return sampler if fixed(sampler) else replace(sampler, steps=S)


def with_eta(sampler: Sampler, eta: float) -> Generalized:
    """The sampler at another η. Raises CannotServe for one that has none."""
    if not isinstance(sampler, Generalized):
        raise CannotServe(f"this study sets the sampler's η, and {type(sampler).__name__} has none; use sampler=ddim")
    return replace(sampler, sigma=Eta(eta))


def without_noise(sampler: Sampler) -> Sampler:
    """The sampler at η = 0; one that has no η as it is."""
    return with_eta(sampler, 0.0) if isinstance(sampler, Generalized) else sampler


def labels(samplers: Sequence[Sampler], T: int) -> list[str]:
    """A name each: η = 0, σ̂, or the class, and behind it what differs among those of one name."""
    settings = [describe(one, T) for one in samplers]
    names = [short(setting) for setting in settings]
    apart = [varying([other for other, one in zip(settings, names, strict=True) if one == name]) for name in names]
    words = [phrase({line: one[line] for line in lines if line in one}) for lines, one in zip(apart, settings, strict=True)]
    return [", ".join(filter(None, pair)) for pair in zip(names, words, strict=True)]


def short(setting: Mapping[str, Any]) -> str:
    """A sampler's first name, from its card: the σ of the generalised step, else its class."""
    return said("sigma", setting["sigma"]) if setting["sampler"] == Generalized.__name__ else setting["sampler"]
