"""Generated images on disk: whose they are."""

from dataclasses import dataclass, replace

import pytest
import torch
from conftest import mixture, randn

from anysigma.diffusion.samplers.base import AlongTau, Step
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.studies import generated as module
from anysigma.studies.base import Model
from anysigma.studies.generated import cost, generated, spoken

SHAPE = (1, 2, 2)


@dataclass(frozen=True, kw_only=True)
class Solver(AlongTau):
    """DDIM whose every step is shortened by a power of its order, so that orders are told apart."""

    order: int
    seed: int = 0

    def step(self, denoiser, x_t, t, s, noise, before):
        eps, x_0 = self.predict(denoiser, x_t, t)
        return Step(t, s, denoiser.process.posterior_mean(x_0 / self.order, eps, s, 0.0), x_0, eps)


@pytest.fixture
def model(process):
    return Model(mixture(process, randn(2, *SHAPE, seed=1), 0.01), SHAPE, {"weights_sha256": "w"})


def made(model, sampler, folder):
    return generated(model, sampler, 4, seed=0, block=4, folder=folder).all()


def test_samplers_that_differ_in_any_field_never_share_images(model, tmp_path):
    one = Solver(steps=5, tau=Trailing(), clip=False, order=1)
    others = [replace(one, **{name: value}) for name, value in {"order": 3, "seed": 1, "clip": True, "steps": 4}.items()]
    first, third, *_ = (made(model, sampler, tmp_path) for sampler in (one, *others))
    assert len(list((tmp_path / "shards").iterdir())) == 5 and not torch.equal(first, third)
    assert torch.equal(made(model, replace(one, order=3), tmp_path), third)
    assert len(list((tmp_path / "shards").iterdir())) == 5


def test_what_was_made_is_not_made_again_unless_it_is_another_models(model, tmp_path):
    ddim = Generalized(steps=5, sigma=Eta(0.0), tau=Trailing(), clip=True)
    images = made(model, ddim, tmp_path)
    broken = replace(model, denoiser=Unasked(model.denoiser))
    assert torch.equal(made(broken, ddim, tmp_path), images)
    with pytest.raises(AssertionError, match="asked"):
        made(replace(broken, card={"weights_sha256": "v"}), ddim, tmp_path)


class Unasked(torch.nn.Module):
    """A denoiser that must not be asked."""

    device = torch.device("cpu")

    def __init__(self, denoiser):
        super().__init__()
        self.process, self.parameterization = denoiser.process, denoiser.parameterization

    def forward(self, x_t, t):
        raise AssertionError("asked")

    clipped = forward


def test_the_cost_is_a_blocks_time_times_all_blocks_and_steps_shared_by_the_processes(model, monkeypatch):
    now = iter([0.0, 100.0, 103.0])  # the first call is not counted: 3 s a block
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(module, "rank_and_world", lambda: (0, 2))
    samplers = [Generalized(steps=S, sigma=Eta(0.0), tau=Trailing(), clip=True) for S in (5, 15)]
    said = cost(model, samplers, 9, 4, "2 settings, 9 images each")
    asked = "2 settings, 9 images each: 240 network evaluations"
    assert said == f"{asked}, sampling takes about 90 s here, if none were made before"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.25, "1.2 s"), (120, "1.2e+02 s"), (600, "10 min"), (7200, "1.2e+02 min"), (9000, "2.5 h"), (432000, "5 days")],
)
def test_a_duration_is_told_in_the_unit_that_fits(seconds, words):
    assert spoken(seconds) == f"about {words} here, if none were made before"
