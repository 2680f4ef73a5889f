"""The toy in the plane: its points lie where they should, and a small perceptron learns them."""

import pytest
import torch
from conftest import randomized

from anysigma.data.datamodule import ImageDataModule
from anysigma.data.images import from_uint8
from anysigma.data.rings import Rings
from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.networks.mlp import MLP


def radius(points):
    return points.flatten(1).norm(dim=1)


@pytest.mark.parametrize("rings", [1, 2, 3])
def test_points_lie_on_the_rings_each_equally_dense(rings):
    source = Rings(rings)
    points = from_uint8(torch.cat([source.train, source.held_out]))
    assert points.shape == (5120, 2, 1, 1)
    apart = (radius(points)[:, None] - source.radii).abs()
    assert apart.min(1).values.max() < 6 * 0.02 and apart.min(1).values.square().mean().sqrt() < 0.025
    share = torch.bincount(apart.argmin(1), minlength=rings) / len(points)
    assert torch.allclose(share, source.radii / source.radii.sum(), atol=0.025)
    assert points.mean(0).abs().max() < 0.03  # all directions alike


def test_the_split_is_fixed_and_the_seed_names_the_points():
    one, two, other = Rings(), Rings(), Rings(seed=1)
    assert one.train.shape == (4096, 2, 1, 1) and one.held_out.shape == (1024, 2, 1, 1) and one.train.dtype == torch.uint8
    torch.manual_seed(5)
    assert torch.equal(one.train, two.train) and torch.equal(one.held_out, two.held_out)
    assert not torch.equal(one.train, other.train)
    assert one.train[:3].flatten().tolist() == PINNED


PINNED = [84, 216, 130, 80, 82, 144]


@pytest.mark.parametrize("settings", [{"rings": 0}, {"noise": -0.1}])
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(ValueError, match="at least 1 ring"):
        Rings(**settings)


def test_it_is_the_source_of_batches():
    data = ImageDataModule(Rings, (2, 1, 1), batch_size=4, seed=0)
    data.setup()
    assert data.on_after_batch_transfer(torch.tensor([0, 1]), 0).shape == (2, 2, 1, 1)


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 3, 5), (3, 4, 4)])
def test_a_perceptron_takes_any_shape_and_starts_at_zero(shape):
    network, x_t, t = MLP(shape), torch.randn(4, *shape), torch.tensor([1, 2, 500, 1000])
    assert network(x_t, t).shape == x_t.shape and not network(x_t, t).any()
    randomized(network)
    assert not torch.equal(network(x_t, t), network(x_t, t.flip(0)))
    assert torch.allclose(network(x_t, t)[:1], network(x_t[:1], t[:1]), atol=1e-6)
    assert network.bfloat16()(x_t, t).dtype == torch.bfloat16


def test_a_perceptron_learns_the_rings(process):
    source, generator = Rings(rings=1), torch.Generator().manual_seed(0)
    denoiser = Denoiser(MLP((2, 1, 1)), process, Eps())
    optimizer = torch.optim.Adam(denoiser.parameters(), 2e-3)
    x_0 = from_uint8(source.train)
    for _ in range(600):
        batch = x_0[torch.randint(len(x_0), (256,), generator=generator)]
        t, eps = torch.randint(1, 1001, (256,), generator=generator), torch.randn(batch.shape, generator=generator)
        loss = (denoiser(process.q_sample(batch, t, eps), t).eps - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampler = Generalized.with_eta(steps=50, eta=1.0, tau=Uniform(), clip=True)
    [(_, made)] = generate(denoiser, sampler, range(256), (2, 1, 1), seed=0, block=256)
    off = (radius(made) - 0.8).abs()
    assert off.median() < 0.1 and made.flatten(1).mean(0).abs().max() < 0.15
