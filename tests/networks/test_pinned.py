"""What the networks answer, kept in pinned.json: so a change that no identity forbids (another upsampling) is seen.

Weights and inputs are uniform numbers of a counter-based generator, bit for bit the same everywhere, named by the
parameter they belong to; all is computed in float64. After a change that is meant, `python tests/networks/test_pinned.py`
writes the file anew.
"""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from anysigma.diffusion.noise import Draws
from anysigma.networks import layers
from anysigma.networks.mlp import MLP
from anysigma.networks.unet import UNet

HERE = Path(__file__).parent
STORED = HERE / "pinned.json"
KEPT = 24  # numbers of each answer

# The shipped files with few channels, and each convention of the U-Net changed by itself.
SMALL = {"shape": (1, 16, 16), "channels": 16}
SETTINGS = {
    "mlp": ("mlp", {"shape": (2, 3, 1), "width": 16}),
    "unet": ("unet", SMALL),
    "unet_ddpm": ("unet_ddpm", {"shape": (3, 16, 16), "channels": 16, "groups": 4}),
    "shape": ("unet", {**SMALL, "shape": (2, 8, 12)}),
    "multipliers": ("unet", {**SMALL, "multipliers": (2, 1, 3)}),
    "blocks": ("unet", {**SMALL, "blocks": 2}),
    "attention": ("unet", {**SMALL, "attention": (16, 8)}),
    "groups": ("unet", {**SMALL, "groups": 8}),
    "norm_eps": ("unet", {**SMALL, "norm_eps": 0.01}),
    "downsample": ("unet", {**SMALL, "downsample": "asymmetric"}),
    "head_dim": ("unet", {**SMALL, "head_dim": 4}),
    "freq_shift": ("unet", {**SMALL, "freq_shift": 0}),
    "flip_sin_to_cos": ("unet", {**SMALL, "flip_sin_to_cos": True}),
    "first_t": ("unet", {**SMALL, "first_t": 1}),
}


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1), float64, a function of the name alone."""
    return 2 * Draws("pinned", name).uniform(torch.arange(math.prod(shape))).reshape(shape) - 1


def network(name: str) -> nn.Module:
    """The setting's network in float64, every weight known and none zero."""
    file, changes = SETTINGS[name]
    options = yaml.safe_load((HERE.parents[1] / f"conf/model/{file}.yaml").read_text())
    kind = {"UNet": UNet, "MLP": MLP}[options.pop("_target_").split(".")[-1]]
    made = kind(**(options | changes)).double().eval()
    with torch.no_grad():
        for key, weight in made.named_parameters():
            drawn = uniform(key, tuple(weight.shape))
            if weight.ndim > 1:
                weight.copy_(drawn * math.sqrt(3 / weight[0].numel()))
            else:
                weight.copy_(drawn / 2 + float(key.endswith("weight")))
    return made


def exact_sinusoids(t: Tensor, dim: int, freq_shift: int = 1, flip_sin_to_cos: bool = False) -> Tensor:
    """`timestep_embedding` in float64: its float32 sines differ by a digit from machine to machine."""
    angle = t.double()[:, None] * 10_000 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - freq_shift))
    waves = [angle.sin(), angle.cos()]
    return torch.cat(waves[::-1] if flip_sin_to_cos else waves, 1)


def answer(name: str) -> list[float]:
    """KEPT numbers of what the network answers at t = 1 and 700."""
    x_t = 1.7 * uniform("x_t", (2, *SETTINGS[name][1]["shape"]))
    with torch.no_grad():
        found = network(name)(x_t, torch.tensor([1, 700])).flatten()
    return found[torch.linspace(0, len(found) - 1, min(KEPT, len(found))).long()].tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_answer_is_the_stored_one(name, monkeypatch):
    monkeypatch.setattr(layers, "timestep_embedding", exact_sinusoids)
    assert answer(name) == pytest.approx(json.loads(STORED.read_text())[name], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_its_own_sinusoids_give_it_too(name):
    assert answer(name) == pytest.approx(json.loads(STORED.read_text())[name], rel=1e-3, abs=1e-3)


def test_every_setting_is_stored_and_no_two_are_alike():
    stored = json.loads(STORED.read_text())
    assert stored.keys() == SETTINGS.keys() and len({tuple(numbers) for numbers in stored.values()}) == len(SETTINGS)
    for numbers in stored.values():
        assert 0.1 < torch.tensor(numbers).std() < 10  # neither drowned nor blown up


if __name__ == "__main__":
    layers.timestep_embedding = exact_sinusoids
    STORED.write_text(json.dumps({name: answer(name) for name in SETTINGS}, indent=1) + "\n")
