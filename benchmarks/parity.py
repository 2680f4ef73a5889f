"""Whether a faster way computes the same: bf16 to fp32, channels_last to contiguous, compiled to not."""

import copy
import math
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anysigma.networks.unet import UNet
from benchmarks.ours import network_words
from benchmarks.task import NETWORKS, Network

# Of outputs and gradients, in the 2-norm: rounding of each way; bf16 holds 8 bits.
WANTED = {"channels_last": 1e-4, "compiled": 1e-4, "bf16": 3e-2}


def measure(network: str, device: str, batch: int) -> dict[str, Any]:
    """Relative differences of the output and of all gradients."""
    torch.manual_seed(0)
    net = NETWORKS[network]
    plain = woken(made(net)).to(device).eval()
    x, t = torch.randn(batch, *net.shape, device=device), torch.randint(1, 1000, (batch,), device=device)
    first = answers(plain, x, t)
    rows = []
    for name, way in ways(device).items():
        network_, autocast = way(copy.deepcopy(plain)), name == "bf16"
        apart = [f"{relative(a, b):.1e}" for a, b in zip(answers(network_, x, t, autocast), first, strict=True)]
        within = "yes" if all(float(one) <= WANTED[name] for one in apart) else "no"
        rows.append([name, *apart, f"{WANTED[name]:.0e}", within])
    if "compiled" not in ways(device):
        rows.append(["compiled", "not run: no C++ compiler here", "", "", ""])
    columns = ["way", "output", "gradients", "allowed", "within"]
    title = f"the same numbers, {network} network, batch {batch}, against fp32 contiguous"
    return {"title": title, "columns": columns, "rows": rows}


def made(net: Network) -> UNet:
    """The network by the words that ours is told."""
    from omegaconf import OmegaConf

    words = [word.removeprefix("model.") for word in network_words(net) if word.startswith("model.")]
    return UNet(net.shape, **OmegaConf.to_container(OmegaConf.from_dotlist(words)))


def woken(network: nn.Module) -> nn.Module:
    """Layers that begin at zero would hide what happens before them."""
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


def ways(device: str) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """What can be had here."""
    found = {"bf16": lambda network: network, "channels_last": lambda network: network.to(memory_format=torch.channels_last)}
    if device == "cuda" or shutil.which("g++"):
        found["compiled"] = torch.compile
    return found


def answers(network: nn.Module, x: Tensor, t: Tensor, bf16: bool = False) -> tuple[Tensor, Tensor]:
    """The output, and all gradients of its mean square as one row."""
    network.zero_grad()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        output = network(x, t)
    output.float().square().mean().backward()
    gradients = [p.grad.float().flatten() for p in network.parameters()]
    return output.detach().float(), torch.cat(gradients)


def relative(a: Tensor, b: Tensor) -> float:
    """‖a - b‖/‖b‖."""
    return ((a - b).norm() / b.norm()).item() if b.norm() > 0 else math.inf
