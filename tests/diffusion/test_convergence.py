"""An unclipped step that makes too much of the network's error is refused; all else converges as S → T, at σ = 0.

The network is exact but for a smooth error of 0.01, without which there would be nothing to multiply.
"""

import itertools
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import mixture, no_noise, randn
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from anysigma.compose import config
from anysigma.compose.config import build
from anysigma.data.images import from_uint8
from anysigma.data.rings import Rings
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.amplification import Amplifies
from anysigma.diffusion.samplers.base import AlongTau, Step
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Quadratic, Trailing, Uniform, UpTo
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.diffusion.schedules.linear import Linear
from anysigma.diffusion.schedules.zero_terminal_snr import ZeroTerminalSNR
from anysigma.networks.mlp import MLP
from anysigma.studies.plane import to_ring

CONF = Path(__file__).parents[2] / "conf"
config.register()

MEANS, VARIANCE = torch.tensor([[-0.6], [0.1], [0.7]], dtype=torch.float64), 0.005  # within [-1, 1]: clipping costs nothing
ERROR = 0.01
PHASES = 4  # the error is taken at several phases: at one alone it may by chance undo that of the steps


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def built(word: str):
    """What a word of train.py builds."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["logger=csv", word])
    return build(OmegaConf.select(cfg, word.partition("=")[0].replace("/", ".")))


@cache
def process_of(schedule: str, T: int | None) -> GaussianProcess:
    """A shipped schedule's process, at another T where one is given."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        node = OmegaConf.to_container(compose("train", ["logger=csv", f"schedule={schedule}"]).schedule, resolve=True)
    return GaussianProcess(build(node if T is None else with_T(node, T)))


def with_T(node, T: int):
    return {key: T if key == "T" else with_T(value, T) for key, value in node.items()} if isinstance(node, dict) else node


class Off(nn.Module):
    """A network that misses what it should say by at most ERROR, and by no more than ERROR in eps."""

    def __init__(self, exact: Denoiser, rows: int):
        super().__init__()
        self.exact, self.phase = exact, torch.arange(rows)[:, None] % PHASES * (2 * math.pi / PHASES)

    def forward(self, x_t, t):
        q, read = self.exact.process, self.exact.parameterization
        size = ERROR / read.eps_scale(q, t[:1]).clamp(min=1)
        return self.exact.network(x_t, t) + size * torch.sin(3 * x_t + 5 * t.double()[:, None] / q.T + self.phase)


def data(n: int) -> torch.Tensor:
    """n quantiles of the data, float64 `[n]`."""
    wanted = (2 * torch.arange(n, dtype=torch.float64) + 1) / (2 * n)
    low, high = torch.full((n,), -3.0, dtype=torch.float64), torch.full((n,), 3.0, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        short = torch.special.ndtr((middle - MEANS) / VARIANCE**0.5).mean(0) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return low


class Setting:
    """A schedule and a parameterisation with the network that is off, and what n samples a phase are away from the data."""

    def __init__(self, q: GaussianProcess, read, n: int = 500):
        exact = mixture(q, MEANS, VARIANCE, read)
        self.q, self.n = q, n
        self.denoiser = Denoiser(Off(exact, n * PHASES), q, read)
        quantiles = (2 * torch.arange(n, dtype=torch.float64) + 1) / (2 * n)
        self.x_T, self.data = torch.special.ndtri(quantiles).repeat_interleave(PHASES)[:, None], data(n)

    def error(self, sampler: AlongTau) -> float:
        """Wasserstein-1 distance of the samples from the data, the mean over phases."""
        generator = torch.Generator().manual_seed(0)
        x_0 = sampler(self.denoiser, self.x_T, lambda: torch.randn(self.x_T.shape, generator=generator, dtype=torch.float64))
        return (x_0.reshape(self.n, PHASES).sort(0).values - self.data[:, None]).abs().mean().item()


def refused(sampler: AlongTau, q: GaussianProcess, read) -> bool:
    try:
        sampler.check(q, read)
    except Amplifies:
        return True
    return False


def growth(error, q: GaussianProcess, read, sampler: AlongTau, clip: bool) -> dict[str, float]:
    """The error at S = T over that at T/5, by τ rule, but where one of them is refused."""
    full = replace(sampler, steps=None, clip=clip)
    if refused(full, q, read):
        return {}
    fewer = {tau: replace(full, steps=q.T // 5, tau=built(f"sampler/tau={tau}")) for tau in options("sampler/tau")}
    at_T = error(full)
    return {tau: at_T / error(one) for tau, one in fewer.items() if not refused(one, q, read)}


def everything_converges(schedule: str, parameterization: str, T: int | None, n: int, samplers: list[str]) -> None:
    q, read = process_of(schedule, T), built(f"parameterization={parameterization}")
    try:
        read.check(q)
    except ValueError:
        pytest.skip("refused: the parameterisation has no x_0 at α_T = 0")
    setting = Setting(q, read, n)
    for sampler in samplers:
        for clip in (True, False):
            found = growth(setting.error, q, read, built(f"sampler={sampler}"), clip)
            assert all(ratio <= 1.5 for ratio in found.values()), (sampler, clip, found)
            assert found or not clip, sampler  # clipped, nothing is refused


@pytest.mark.parametrize("parameterization", options("parameterization"))
@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_every_shipped_combination_converges_or_is_refused(schedule, parameterization):
    everything_converges(schedule, parameterization, 100, 250, ["ddim", "dpmpp"])


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", options("parameterization"))
@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_every_shipped_combination_converges_at_its_own_T(schedule, parameterization):
    # Without those that add noise: with a network off by 0.01 they are up to 1.6 times as far at S = T as at T/5 (η = 1
    # with cosine and eps 1.57, clipped; σ̂ with x_0 1.62), though no step goes beyond the limit.
    everything_converges(schedule, parameterization, None, 1000, ["ddim", "dpmpp"])


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_what_is_refused_would_not_converge(sampler):
    # The default's cosine with eps, unclipped: were the rule not there, the test above would fail by far.
    setting, chosen = Setting(process_of("cosine", 200), Eps()), replace(built(f"sampler={sampler}"), clip=False, steps=None)
    assert refused(chosen, setting.q, Eps()) and not refused(replace(chosen, limit=None), setting.q, Eps())
    fewer = replace(chosen, steps=40, tau=Uniform())
    assert setting.error(replace(chosen, limit=None)) > 3 * setting.error(fewer)
    assert setting.error(replace(chosen, tau=UpTo(Uniform(), 190))) < 1.5 * setting.error(fewer)


# --- a trained network ---------------------------------------------------------------------------------------------


def trained(q: GaussianProcess, read) -> Denoiser:
    """The MLP after 2,000 steps on the rings, under L_γ with γ = 1 in the output's space."""
    generator, denoiser, x_0 = torch.Generator().manual_seed(0), Denoiser(MLP((2, 1, 1)), q, read), from_uint8(Rings().train)
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    for _ in range(2000):
        batch = x_0[torch.randint(len(x_0), (256,), generator=generator)]
        t, eps = torch.randint(1, q.T + 1, (256,), generator=generator), torch.randn(batch.shape, generator=generator)
        missed = denoiser.output(q.q_sample(batch, t, eps), t) - read.target(q, batch, t, eps)
        optimizer.zero_grad()
        missed.square().mean().backward()
        optimizer.step()
    return denoiser


@torch.inference_mode()
def from_rings(denoiser: Denoiser, sampler: AlongTau) -> float:
    """Mean distance of 1,000 samples to the nearest ring; the data's own is 0.016."""
    x_T = randn(1000, 2, 1, 1, dtype=torch.float32)
    return to_ring(sampler(denoiser, x_T, no_noise).flatten(1), Rings().radii).mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", options("parameterization"))
@pytest.mark.parametrize("schedule", options("schedule"))
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_a_trained_network_converges_or_is_refused(schedule, parameterization):
    q, read = process_of(schedule, None), built(f"parameterization={parameterization}")
    try:
        read.check(q)
    except ValueError:
        pytest.skip("refused: the parameterisation has no x_0 at α_T = 0")
    denoiser = trained(q, read)
    for sampler, clip in itertools.product(("ddim", "dpmpp"), (True, False)):
        found = growth(lambda one: from_rings(denoiser, one), q, read, built(f"sampler={sampler}"), clip)
        assert all(ratio <= 1.5 for ratio in found.values()), (sampler, clip, found)


# --- the number ----------------------------------------------------------------------------------------------------


class Constant(nn.Module):
    """A network whose output does not look at x_t, and may be moved."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x_t, t):
        return self.values[int(t[0])].expand_as(x_t)


SAMPLERS = {
    "ddim": Generalized(steps=None, sigma=Eta(0.0), tau=[1], clip=False),
    "ddpm": Generalized(steps=None, sigma=Eta(1.0), tau=[1], clip=False),
    "sigma_hat": Generalized(steps=None, sigma=SigmaHat(), tau=[1], clip=False),
    "dpmpp": DPMSolverPP(steps=None, tau=[1], clip=False),
}


@pytest.mark.parametrize("tau", [[1000, 999, 998], [1000, 500, 20, 1], [3, 2, 1], [700, 1]], ids=str)
@pytest.mark.parametrize("read", [Eps(), X0(), V()], ids=["eps", "x0", "v"])
@pytest.mark.parametrize("schedule", [Cosine(), Linear()], ids=["cosine", "linear"])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.filterwarnings("ignore:sampling starts at")
def test_amplification_is_what_autograd_finds(schedule, read, tau, sampler):
    # x_s is linear in every output: its derivatives by the outputs at t and at the step before, each by itself.
    q, chosen, x_t = GaussianProcess(schedule), replace(SAMPLERS[sampler], tau=tau, limit=None), randn(1, 1)
    outputs = {t: randn(1, 1, seed=t).requires_grad_() for t in tau}
    steps = [*chosen.trajectory(Denoiser(Constant(outputs), q, read), x_t, lambda: torch.zeros(1, 1).double())]
    claimed, before = chosen.amplified(q, read), None
    assert [(one.t, one.s) for one in claimed] == chosen.pairs(1000)
    for one, step in zip(claimed, steps, strict=True):
        # The step as it is, from a state that depends on no output.
        x = randn(1, 1)
        seen = () if before is None else (before,)
        again = chosen.step(Denoiser(Constant(outputs), q, read), x, one.t, one.s, lambda: torch.zeros(1, 1).double(), seen)
        wanted = [outputs[one.t]] + ([outputs[before.t]] if before is not None and chosen.memory else [])
        slopes = torch.autograd.grad(again.x_s.sum(), wanted, allow_unused=True)
        largest = max(abs(slope.item()) for slope in slopes if slope is not None)
        assert one.factor == pytest.approx(largest, rel=1e-9, abs=1e-12)
        eps, x_0 = Denoiser(Constant(outputs), q, read)(randn(1, 1, seed=9), one.t)
        before = Step(one.t, one.s, step.x_s.detach(), x_0, eps)


@pytest.mark.parametrize("read", [Eps(), X0(), V()], ids=["eps", "x0", "v"])
def test_the_amplification_of_encoding_is_what_autograd_finds(read):
    q, tau = GaussianProcess(Linear()), [1, 101, 500, 1000]
    chosen = Generalized.with_eta(None, 0.0, tau, True, limit=None)
    outputs = {t: randn(1, 1, seed=t).requires_grad_() for t in tau}
    claimed = {(one.t, one.s): one.factor for one in chosen.amplified_upward(q, read)}
    assert list(claimed) == [(1, 101), (101, 500), (500, 1000)]
    for (s, t), factor in claimed.items():
        prediction = Denoiser(Constant(outputs), q, read)(randn(1, 1), s)
        (slope,) = torch.autograd.grad(q.posterior_mean(prediction.x_0, prediction.eps, t, 0.0).sum(), outputs[s])
        assert factor == pytest.approx(abs(slope.item()), rel=1e-9)
    first = Denoiser(Constant(outputs), q, read)(randn(1, 1), 1).eps
    assert abs(torch.autograd.grad(((1 - q.alpha(1)).sqrt() * first).sum(), outputs[1])[0].item()) <= 1


def test_v_multiplies_nothing_and_a_capped_beta_30_6_times():
    for schedule in (Linear(), Cosine(), ZeroTerminalSNR(Linear()), Linear(10)):
        for tau in (Uniform(), Trailing(), Quadratic()):
            for S in (1, 2, 5, 10):
                for sampler in (SAMPLERS["ddim"], SAMPLERS["ddpm"]):
                    found = replace(sampler, steps=S, tau=tau).amplified(GaussianProcess(schedule), V())
                    assert max(found).factor <= 1
    worst = max(replace(SAMPLERS["ddim"], tau=Uniform()).amplified(GaussianProcess(Cosine()), Eps()))
    assert (worst.t, worst.s) == (1000, 999) and worst.factor == pytest.approx(1 / math.sqrt(1 - 0.999) - 1, rel=1e-3)


# --- the refusal ---------------------------------------------------------------------------------------------------

COSINE = GaussianProcess(Cosine())


@pytest.mark.parametrize(
    "facts, said",
    [
        (
            {"steps": None, "tau": Uniform()},
            "from t=1000 to 999 multiplies the network's error by 30.6,.* sampler.steps=500,",
        ),
        ({"steps": 20, "tau": Trailing()}, "from t=1000 to 950 .* by 1.58e.03, .*, or sampler/tau=uniform, or a run with"),
        ({"steps": 50, "tau": [1000]}, "from t=1000 to 0 .* say sampler.clip=true, or a run with parameterization=v"),
    ],
)
@pytest.mark.parametrize("start", ["check", "trajectory"])
def test_it_is_refused_in_one_line_before_the_first_step(facts, said, start):
    chosen = Generalized(sigma=Eta(0.0), clip=False, **facts)
    asked = []
    denoiser = Denoiser.of(lambda x_t, t: asked.append(t), COSINE.schedule)
    with pytest.raises(Amplifies, match=said) as refused:
        chosen.check(COSINE, Eps()) if start == "check" else chosen(denoiser, randn(1, 1), no_noise)
    assert "\n" not in str(refused.value) and "more than sampler.limit=10" in str(refused.value) and not asked
    for allowed in (replace(chosen, clip=True), replace(chosen, limit=None), replace(chosen, limit=1e5)):
        allowed.check(COSINE, Eps())
    chosen.check(COSINE, V())


def test_what_it_says_would_do_does():
    refused = Generalized.with_eta(None, 0.0, Uniform(), False)
    replace(refused, steps=500).check(COSINE, Eps())
    Generalized.with_eta(20, 0.0, Uniform(), False).check(COSINE, Eps())


class Doubling(AlongTau):
    """A stranger's solver that says nothing of its amplification."""

    def step(self, denoiser, x_t, t, s, noise, before):
        raise AssertionError("it was begun")


def test_it_holds_for_a_strangers_solver():
    chosen = Doubling(steps=None, tau=Uniform(), clip=False)
    with pytest.raises(Amplifies, match=r"by 30\.6"):
        next(chosen.trajectory(Denoiser.of(lambda x_t, t: x_t, COSINE.schedule), randn(1, 1), no_noise))


def test_a_solver_that_leads_on_too_far_is_refused_with_v_too():
    # From 501 to 500 log-SNR grows little, from 500 to 1 by much: x_0's change in the first is led on 700 times as far.
    with pytest.raises(Amplifies, match="from t=500 to 1 ") as refused:
        DPMSolverPP(steps=None, tau=[501, 500, 1], clip=False).check(COSINE, V())
    assert "parameterization=v" not in str(refused.value)


def test_encoding_is_refused_before_the_first_step():
    # x_0 said at t = 1 gives eps by a division by √(1-α_1): from there to 101 in one step that is 31 times.
    q, chosen = GaussianProcess(Linear()), Generalized.with_eta(10, 0.0, Uniform(), True)
    with pytest.raises(Amplifies, match=r"from t=1 to 101 .* by 31\.4.*say sampler/tau=trailing"):
        next(chosen.encoding(Denoiser(Constant({}), q, X0()), randn(1, 1)))
    replace(chosen, tau=Trailing()).check_encoding(q, X0())
    chosen.check_encoding(q, Eps())


# --- τ over a part of 1..T -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Uniform(), Trailing(), Quadratic()], ids=repr)
def test_up_to_is_the_rule_over_fewer_steps(rule):
    chosen = Generalized.with_eta(None, 0.0, UpTo(rule, 37), False)
    assert UpTo(rule, 37)(10, 1000) == rule(10, 37) and UpTo(rule, 2000)(10, 1000) == rule(10, 1000)
    for steps in (None, 1000, 37, 500):
        assert replace(chosen, steps=steps).pairs(1000) == [(t, t - 1) for t in range(37, 0, -1)]
    with pytest.raises(ValueError, match=r"last=0"):
        UpTo(rule, 0)
