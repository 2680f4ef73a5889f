"""FLOPs against closed forms, peaks by name, memory as the system says."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anysigma.machine.flops import forward_flops, peak, peak_of
from anysigma.machine.memory import memory_gib
from anysigma.networks.layers import Attention
from anysigma.networks.unet import UNet

C, H, W = 3, 8, 6


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, 5, 3, stride=2, padding=1)
        self.register_buffer("table", torch.zeros(4))

    def forward(self, x_t, t):
        return self.conv(x_t + self.table.sum())


class Attending(nn.Module):
    def __init__(self, width, head_dim):
        super().__init__()
        self.attention = Attention(width, head_dim, lambda channels: nn.GroupNorm(1, channels))

    def forward(self, x_t, t):
        return self.attention(x_t)


def test_a_convolution_costs_two_for_each_weight_and_place():
    assert forward_flops(Conv(), (C, H, W)) == 2 * (C * 9) * 5 * (H // 2) * (W // 2)


@pytest.mark.parametrize("head_dim", [None, 4])
def test_attention_is_counted_whatever_its_heads(head_dim):
    width, places = 16, H * W
    projections = 2 * (3 + 1) * width * width * places
    assert forward_flops(Attending(width, head_dim), (width, H, W)) == projections + 2 * 2 * places * places * width


def test_the_network_is_left_as_it_was_and_nothing_is_drawn():
    network, before = UNet((C, 8, 8), channels=8, dropout=0.5).train(), torch.get_rng_state()
    weights = {name: one.clone() for name, one in network.state_dict().items()}
    assert forward_flops(network, (C, 8, 8)) > 2 * 8 * 9 * C * 64
    assert network.training and torch.equal(torch.get_rng_state(), before)
    assert all(one.device.type == "cpu" and torch.equal(one, weights[name]) for name, one in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_network_that_looks_at_its_values_has_no_count():
    class Looks(nn.Module):
        def forward(self, x_t, t):
            return F.silu(x_t) if x_t.sum().item() > 0 else x_t

    assert forward_flops(Looks(), (C, H, W)) is None


@pytest.mark.parametrize(
    ("name", "precision", "teras"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989.4),
        ("NVIDIA H100 PCIe", "bf16-mixed", 756),
        ("NVIDIA H200", "32-true", 494.7),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312),
        ("NVIDIA A100 80GB PCIe", "32-true", 156),
        ("A100-SXM4-40GB", "16-mixed", 312),
        ("Tesla V100-SXM2-16GB", "16-mixed", 125),
        ("NVIDIA L4", "bf16-mixed", 121),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165.2),
    ],
)
def test_a_known_gpu_has_its_data_sheets_dense_peak(name, precision, teras):
    assert peak_of(name, precision) == teras * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA A1000", "NVIDIA GH200 480GB",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA L40", "some GPU", "",
    ],
)  # fmt: skip
def test_another_has_none(name):
    assert peak_of(name, "bf16-mixed") is None


def test_a_precision_without_units_for_it_and_a_cpu_have_none():
    assert peak_of("Tesla V100-SXM2-16GB", "bf16-mixed") is None and peak_of("NVIDIA H200", "64-true") is None
    assert peak(torch.device("cpu"), "32-true") is None


def test_resident_memory_grows_with_what_is_held(tmp_path, monkeypatch):
    cpu, before = torch.device("cpu"), memory_gib(torch.device("cpu"))
    held = torch.ones(2**26)  # a quarter of a GiB, touched
    assert 0.2 < memory_gib(cpu) - before < 0.4 and held.sum() > 0
    monkeypatch.setattr("anysigma.machine.memory.STATM", tmp_path / "none")
    assert memory_gib(cpu) is None
