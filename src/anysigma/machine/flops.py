"""What a network costs in floating-point operations, and how many a machine makes a second at most."""

import copy
import re
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense peaks in 10^12 a second by what torch.cuda.get_device_name() says, from the vendor's data sheets; where a sheet
# has figures with sparsity alone, half of them. fp32: with TF32 where the card has it. A name that is not here has none.
PEAKS = {
    "H100 80GB HBM3": {"bf16": 989.4, "fp16": 989.4, "fp32": 494.7},
    "H100 PCIe": {"bf16": 756.0, "fp16": 756.0, "fp32": 378.0},
    "H200": {"bf16": 989.4, "fp16": 989.4, "fp32": 494.7},
    "A100[- ].*": {"bf16": 312.0, "fp16": 312.0, "fp32": 156.0},
    "V100-SXM2-.*": {"fp16": 125.0, "fp32": 15.7},
    "V100-PCIE-.*": {"fp16": 112.0, "fp32": 14.0},
    "T4": {"fp16": 65.0, "fp32": 8.1},
    "L4": {"bf16": 121.0, "fp16": 121.0, "fp32": 60.0},
    "L40S": {"bf16": 362.0, "fp16": 362.0, "fp32": 183.0},
    "RTX 4090": {"bf16": 165.2, "fp16": 165.2, "fp32": 82.6},
}
PRECISIONS = {"bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32"}  # a Trainer's words


def peak(device: torch.device, precision: str) -> float | None:
    """Floating-point operations a second that a GPU makes at most in a Trainer's precision; None where it is not known.

    A CPU has no table, and what it makes in a moment of trial depends on what runs beside: None.
    """
    return peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_of(name: str, precision: str) -> float | None:
    """The same by the GPU's name. A part of a GPU (MIG), a laptop's or another variant has none."""
    name = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", name)
    found = [peaks for pattern, peaks in PEAKS.items() if re.fullmatch(pattern, name) and "MIG" not in name]
    teras = found[0].get(PRECISIONS.get(precision)) if found else None
    return None if teras is None else teras * 1e12


def forward_flops(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Floating-point operations of the network on one image x_t `[1, C, H, W]`, t `[1]`: 2 for each multiply-add.

    Convolutions, matrix products and attention are counted, nothing else: a network's rest is small beside them. A
    training step costs three times as much, backward being twice forward. A copy on the meta device is asked: it holds
    no memory, computes nothing and draws nothing, and there attention is counted, which on a CPU is not. None where the
    network cannot be asked there.
    """
    tensors = [*network.parameters(), *network.buffers()]
    memo = {id(one): copy_on_meta(one) for one in tensors}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            copied = copy.deepcopy(network, memo).eval()
            copied(torch.empty(1, *shape, device="meta"), torch.ones(1, dtype=torch.long, device="meta"))
    except (NotImplementedError, RuntimeError):  # a network of a person's own that looks at its values
        return None
    return counter.get_total_flops()


def copy_on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """Shape and dtype of a parameter or buffer, without its values."""
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
