"""Nothing in a training step or a sampler reads a number back from the device: on the meta device there is none to read."""

import pytest
import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import Draws
from anysigma.diffusion.objective import P2, VMSE, Elbo, ElboBeta, LGamma, MinSNR, Simple, Stratified, Uniform
from anysigma.diffusion.parameterizations import X0, Eps, V
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta, SigmaHat
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.diffusion.schedules.cosine import Cosine
from anysigma.networks.unet import UNet
from anysigma.training.ema import EMA

META, B, SHAPE = torch.device("meta"), 6, (1, 8, 8)
GAMMAS = [Simple(), VMSE(), MinSNR(), P2(), Elbo(), ElboBeta()]
SAMPLERS = [
    *(Generalized(steps=4, sigma=rule, tau=Trailing(), clip=True) for rule in (Eta(0.0), Eta(1.0), SigmaHat())),
    Generalized(steps=4, sigma=Eta(0.5), tau=Trailing(), clip=False, limit=None),
    DPMSolverPP(steps=4, tau=Trailing(), clip=True),
]


def on_meta(parameterization):
    """A small U-Net with attention and dropout as a denoiser, without a single number on the device."""
    network = UNet(SHAPE, channels=8, multipliers=[1, 2], blocks=1, attention=[4], dropout=0.1).to(META)
    return Denoiser(network, GaussianProcess(Cosine(T=1000)), parameterization)


@pytest.mark.parametrize("read", [Tensor.item, bool, Tensor.cpu, Tensor.tolist, Tensor.nonzero])
def test_whoever_reads_there_is_refused(read):
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.ones(1, device=META))


@pytest.mark.parametrize("draw", [Uniform(), Stratified()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("gamma", GAMMAS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda one: type(one).__name__)
def test_a_step_asks_the_device_nothing(parameterization, gamma, draw):
    """Draws of t and ε, the loss, its gradients, the average."""
    denoiser, objective = on_meta(parameterization), LGamma(gamma, draw)
    ema, rows = EMA(denoiser), torch.arange(B, device=META)
    t, weight = objective.draw_t(Draws(0, "t").uniform(rows), denoiser.process.T)
    x_0, eps = torch.empty(B, *SHAPE, device=META), Draws(0, "eps").normal(rows, SHAPE)
    loss = (weight * objective(denoiser, x_0, t, eps)).mean()
    loss.backward()
    ema.update(denoiser, 0)
    assert loss.device == META and all(p.grad.device == META for p in denoiser.parameters())


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: f"{type(one).__name__}-{getattr(one, 'sigma', '')}")
@pytest.mark.parametrize("parameterization", [Eps(), X0(), V()], ids=lambda one: type(one).__name__)
def test_a_sampler_asks_the_device_nothing(parameterization, sampler):
    denoiser = EMA(on_meta(parameterization))
    found = list(generate(denoiser, sampler, range(5), SHAPE, seed=0, block=4))
    assert [(numbers, x_0.device) for numbers, x_0 in found] == [([0, 1, 2, 3], META), ([4], META)]
