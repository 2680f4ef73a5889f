import pytest
import torch
from torch import nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.schedules.linear import Linear
from anysigma.networks.unet import UNet
from anysigma.training.ema import EMA


class Scalar(nn.Module):
    """One weight and one buffer."""

    def __init__(self, value: float, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value], dtype=dtype))
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x_t, t):
        return self.dropout(self.weight * x_t)


def denoiser(network: nn.Module | None = None) -> Denoiser:
    return Denoiser(network or Scalar(0.0), GaussianProcess(Linear(10)), Eps())


def set_weight(source: Denoiser, value: float) -> None:
    with torch.no_grad():
        source.network.weight.fill_(value)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_average_follows_its_recursion(dtype, tolerance, decay):
    source = denoiser(Scalar(0.3, dtype))
    ema, expected = EMA(source, decay), 0.3
    for k in range(200):
        value = (-1) ** k * (1 + k % 7) / 8
        set_weight(source, value)
        ema.update(source, k)
        d = min(decay, (1 + k) / (10 + k))
        expected = d * expected + (1 - d) * value
        assert ema.network.weight.item() == pytest.approx(expected, abs=tolerance), k


def test_towards_a_constant_the_distance_is_the_product_of_the_decays():
    # While (1+k)/(10+k) rules, Π_{i<n} (1+i)/(10+i) = n! 9!/(n+9)!, a closed form.
    source = denoiser(Scalar(0.0))
    ema, left = EMA(source, 0.9999), 1.0
    set_weight(source, 1.0)
    for n in range(1, 50):
        ema.update(source, n - 1)
        left = 1.0
        for j in range(1, 10):
            left *= j / (n + j)
        assert 1 - ema.network.weight.item() == pytest.approx(left, abs=1e-12)


def test_the_decay_warms_up_to_its_value():
    ema = EMA(denoiser(), 0.99)
    assert ema.decay_at(0) == pytest.approx(0.1) and ema.decay_at(8) == pytest.approx(0.5)
    assert ema.decay_at(889) < 0.99 and ema.decay_at(891) == 0.99 and ema.decay_at(10**9) == 0.99


def test_the_decay_that_nobody_names_is_ddpms():
    assert EMA(denoiser()).decay == 0.9999 and EMA(denoiser()).warmup


def test_without_warmup_the_decay_is_itself_from_the_first_step():
    source = denoiser(Scalar(1.0))
    ema = EMA(source, 0.9, warmup=False)
    assert ema.network.weight.item() == 1.0  # the average starts as the weights
    set_weight(source, 0.0)
    for n in range(1, 20):
        ema.update(source, n - 1)
        assert ema.network.weight.item() == pytest.approx(0.9**n, abs=1e-12)


def test_it_stays_in_evaluation_mode():
    ema = EMA(denoiser().train(), 0.9)
    assert not any(m.training for m in ema.modules())
    nn.ModuleList([ema]).train()
    assert not any(m.training for m in ema.modules())
    assert ema.train() is ema
    x = torch.ones(4, 1, dtype=torch.float64)
    assert torch.equal(ema(x, 1).eps, ema.network.weight * x)


def test_it_collects_no_gradients():
    source = denoiser()
    ema = EMA(source, 0.9)
    assert not any(p.requires_grad for p in ema.parameters()) and all(p.requires_grad for p in source.parameters())
    source.network.weight.square().sum().backward()
    ema.update(source, 0)
    assert ema.network.weight.grad is None and ema.network.weight.grad_fn is None
    assert not ema.network.weight.requires_grad


def test_buffers_are_copied_not_averaged():
    source = denoiser()
    ema = EMA(source, 0.999)
    source.network.seen.fill_(7)
    ema.update(source, 10_000)
    assert ema.network.seen.item() == 7
    source.network.seen.fill_(8)
    assert ema.network.seen.item() == 7


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMA(denoiser(), decay)


def test_the_copy_starts_equal_and_goes_its_own_way():
    source = denoiser(UNet((1, 8, 8), channels=24))
    ema = EMA(source, 0.9)
    before = [p.clone() for p in ema.parameters()]
    assert [n for n, _ in ema.named_parameters()] == [n for n, _ in source.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, source.parameters(), strict=True))
    assert not {p.data_ptr() for p in ema.parameters()} & {p.data_ptr() for p in source.parameters()}
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, ema.parameters(), strict=True))


def test_an_update_leaves_the_source_alone():
    source = denoiser(Scalar(0.3))
    ema = EMA(source, 0.5)
    set_weight(source, 0.7)
    ema.update(source, 3)
    assert source.network.weight.item() == 0.7 and ema.network.weight.item() != 0.7


def test_it_shares_the_process_and_the_parameterization():
    source = denoiser()
    ema = EMA(source, 0.9)
    assert ema.process is source.process and ema.parameterization is source.parameterization
