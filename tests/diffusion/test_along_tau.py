"""What every sampler along a τ shares: what it remembers, what its card says, and that nothing waits for the host."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import gaussian, no_noise, randn
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.samplers.base import AlongTau, Step, describe, generate
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Explicit, Quadratic, Trailing, Uniform


@dataclass(frozen=True, kw_only=True)
class Remembering(AlongTau):
    """DDIM that writes down what it is shown of the steps before."""

    order: int = 1
    seen: list | None = None
    memory = 2

    def step(self, denoiser, x_t, t, s, noise, before):
        if self.seen is not None:
            self.seen.append((t, s, before))
        eps, x_0 = self.predict(denoiser, x_t, t)
        return Step(t, s, denoiser.process.posterior_mean(x_0, eps, s, 0.0), x_0, eps)


@pytest.fixture
def denoiser(process):
    return gaussian(process, torch.full((1,), 0.7, dtype=torch.float64), 0.3)


# --- before, and repeats -------------------------------------------------------------------------------------------


def test_a_solver_sees_the_last_steps_that_moved_newest_first(denoiser):
    seen = []
    chosen = Remembering(steps=None, tau=[1000, 1000, 700, 400, 400, 400, 100, 2], clip=False, limit=None, seen=seen)
    steps = list(chosen.trajectory(denoiser, randn(2, 1), no_noise))
    assert [(t, s) for t, s, _ in seen] == [(1000, 700), (700, 400), (400, 100), (100, 2), (2, 0)]
    assert [[step.t for step in before] for *_, before in seen] == [[], [1000], [700, 1000], [400, 700], [100, 400]]
    moved = [step for step in steps if step.t != step.s]
    assert len(steps) == 8 and all(step is moved[i - 1 - j] for i, (*_, b) in enumerate(seen) for j, step in enumerate(b))


def test_a_step_carries_what_the_denoiser_said_of_the_state_it_left(denoiser):
    x_t = randn(3, 1)
    for chosen in (
        Remembering(steps=5, tau=Trailing(), clip=False, limit=None),
        Generalized(steps=None, sigma=Eta(0.0), tau=[1000, 500, 500, 20], clip=False, limit=None),
        DPMSolverPP(steps=5, tau=Trailing(), clip=False, limit=None),
    ):
        state = x_t
        for step in chosen.trajectory(denoiser, x_t, no_noise):
            eps, x_0 = denoiser(state, step.t)
            assert torch.equal(step.eps, eps) and torch.equal(step.x_0, x_0)
            state = step.x_s


def test_a_repeat_costs_an_evaluation_and_moves_nothing(denoiser):
    for chosen in (
        Remembering(steps=None, tau=[700, 700, 5], clip=False, limit=None),
        DPMSolverPP(steps=None, tau=[700, 700, 5], clip=True),
    ):
        once, x_T = replace(chosen, tau=[700, 5]), randn(2, 1)
        assert torch.equal(chosen(denoiser, x_T, no_noise), once(denoiser, x_T, no_noise))
        assert (chosen.evaluations(1000), once.evaluations(1000)) == (3, 2)


@pytest.mark.parametrize(
    "steps, tau, S", [(20, Trailing(), 20), (None, Uniform(), 1000), (50, Quadratic(), 50), (9, [7, 3, 0], 2)]
)
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_the_network_is_asked_evaluations_times(process, steps, tau, S):
    asked = []
    counting = Denoiser.of(lambda x_t, t: asked.append(t) or torch.zeros_like(x_t), process.schedule)
    chosen = Generalized(steps=steps, sigma=Eta(0.0), tau=tau, clip=True)
    for _ in chosen.trajectory(counting, randn(1, 1), no_noise):
        pass
    assert len(asked) == chosen.evaluations(1000) == S


# --- the card ------------------------------------------------------------------------------------------------------


def test_a_card_says_every_field():
    found = describe(Generalized(steps=10, sigma=Eta(0.0), tau=Uniform(), clip=True), 1000)
    assert found == {
        "sampler": "Generalized",
        "S": 10,
        "sigma": "Eta(eta=0.0)",
        "tau": "Uniform()",
        "clip": True,
        "limit": 10.0,
    }
    found = describe(Remembering(steps=None, tau=[5, 3], clip=False, order=3), 10)
    own, base = {"order": 3, "seen": None}, {"tau": "Explicit(values=(5, 3))", "clip": False, "limit": 10.0}
    assert found == {"sampler": "Remembering", "S": 2, **own, **base}


@dataclass(frozen=True)
class Bent:
    """A τ rule with a rule and a list inside."""

    inner: object
    powers: tuple[float, ...] = (1.0, 2.0)

    def __call__(self, S, T):
        return Uniform()(S, T)

    def __repr__(self):
        return "bent"


def test_nested_dataclasses_are_told_apart_by_all_they_hold():
    chosen = Remembering(steps=4, tau=Bent(Explicit((2, 1))), clip=True)
    found = describe(chosen, 10)["tau"]
    assert found == "Bent(inner=Explicit(values=(2, 1)), powers=(1.0, 2.0))"
    others = [replace(chosen, tau=tau) for tau in (Bent(Explicit((3, 1))), Bent(Explicit((2, 1)), (1.0, 3.0)), Uniform())]
    assert len({str(describe(one, 10)) for one in (chosen, *others)}) == 4


class Nameless:
    """A rule that cannot be told from another of its class."""

    def __call__(self, S, T):
        return Uniform()(S, T)


@pytest.mark.parametrize(
    "field, value", [("tau", Nameless()), ("tau", Bent(Nameless())), ("seen", {}), ("seen", [torch.ones(1)])]
)
def test_a_field_that_cannot_be_told_is_refused_in_one_line(field, value):
    chosen = replace(Remembering(steps=4, tau=Uniform(), clip=True), **{field: value})
    expected = rf"sampler\.{field} is of \w+: a figure's card takes plain values and dataclasses"
    with pytest.raises(ValueError, match=expected) as said:
        describe(chosen, 10)
    assert "\n" not in str(said.value)


def test_a_sampler_that_is_no_dataclass_is_refused():
    with pytest.raises(ValueError, match="Nameless is no dataclass"):
        describe(Nameless(), 10)


# --- on a GPU ------------------------------------------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Refuses every copy from one device to another; on "meta" nothing can be read back either."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.device.type == "meta":
            moved = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 0 and "copy" in function.__name__]
            assert not any(a.device.type == "cpu" for a in moved), function
        return made


@pytest.mark.parametrize("sigma", [Eta(0.0), Eta(1.0), SigmaHat(), None], ids=["ddim", "ddpm", "sigma_hat", "dpmpp"])
@pytest.mark.parametrize("clip", [True, False])
def test_no_step_waits_for_the_host(process, sigma, clip):
    facts = {"steps": 10, "tau": Trailing(), "clip": clip}
    chosen = DPMSolverPP(**facts) if sigma is None else Generalized(**facts, sigma=sigma)
    denoiser = Denoiser.of(Ignoring(nn.Conv2d(1, 1, 3, padding=1, device="meta")), process.schedule)
    x_T = torch.zeros(2, 1, 8, 8, device="meta")
    with NoWaiting():
        x_0 = chosen(denoiser, x_T, lambda: torch.zeros_like(x_T))
    assert x_0.device.type == "meta" and x_0.shape == x_T.shape


# --- what has no parameters ----------------------------------------------------------------------------------------


def test_a_function_and_a_module_are_denoisers(process):
    x_t, double = randn(3, 1), nn.Linear(1, 1, dtype=torch.float64)
    bare = Denoiser.of(lambda x_t, t: double(x_t), process.schedule)
    module = Denoiser.of(Ignoring(double), process.schedule)
    assert torch.equal(bare(x_t, 5).x_0, module(x_t, 5).x_0)
    torch.testing.assert_close(process.q_sample(bare(x_t, 5).x_0, 5, double(x_t)), x_t, rtol=0, atol=1e-12)
    assert len(list(module.parameters())) == 2 and list(bare.parameters()) == []
    assert bare.device == torch.device("cpu") and module.to("meta").device == torch.device("meta")


class Ignoring(nn.Module):
    """A network that does not look at t."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x_t, t):
        return self.layer(x_t)


def test_images_are_generated_without_parameters(process):
    chosen, bare = Generalized.with_eta(5, 1.0, Trailing(), True), Denoiser.of(lambda x_t, t: x_t, process.schedule)
    found = list(generate(bare, chosen, [3, 9], (1, 2, 2), seed=0, block=4))
    assert [ks for ks, _ in found] == [[3], [9]] and all(x_0.shape == (1, 1, 2, 2) for _, x_0 in found)
