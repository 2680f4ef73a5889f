"""Feature networks: what a Fréchet distance is measured in. Each names itself, and no distance is called FID but one."""

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from anysigma.data.images import from_uint8


class NoFeatures(ValueError):
    """No distance can be measured on this data; the message says why."""


def none() -> nn.Module:
    """`features=none`: always raises NoFeatures."""
    raise NoFeatures("this data set has no feature network; features=NAME chooses one")


class Classifier(nn.Module):
    """A small convolutional classifier, uint8 `[B, C, H, W]` → logits `[B, classes]`; `features` gives `[B, dim]`.

    Features are averages over all positions, as Inception's are: beside a fully connected layer of the same accuracy
    they saw noise and blur better at the same n, and varied less among samples of real images. 3x3 convolutions of
    `widths`, then `dim` channels; the image is halved after those convolutions whose number (from 1) is in `pools`.
    """

    def __init__(
        self, channels: int, dim: int = 64, classes: int = 10, widths: Sequence[int] = (32, 64), pools: Sequence[int] = (2,)
    ):
        super().__init__()
        layers, inputs = [], channels
        for number, width in enumerate([*widths, dim], 1):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] + [nn.MaxPool2d(2)] * (number in pools)
            inputs = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(dim, classes)

    def features(self, images: Tensor) -> Tensor:
        """float32 `[B, dim]`, non-negative."""
        return self.body(from_uint8(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class ClassifierFeatures(nn.Module):
    """The penultimate layer of a shipped `Classifier`: uint8 `[B, C, H, W]` → float32 `[B, 64]`.

    The weights travel as safetensors with their held-out accuracy in the header; `name` becomes part of every
    distance's name (fd_digits). Raises FileNotFoundError where the weights are absent, ValueError for foreign ones.
    """

    def __init__(self, name: str, shape: Sequence[int], weights_path: str | None = None):
        super().__init__()
        self.name, self.metric, self.shape = name, f"fd_{name}", tuple(shape)
        if not name.isidentifier():
            raise ValueError(f"features.name={name!r}: a word of letters, digits and '_'")
        path = Path(weights_path) if weights_path else Path(str(files("anysigma.metrics") / f"weights/{name}.safetensors"))
        if not path.is_file():
            raise FileNotFoundError(f"features={name}: no weights at {path}")
        with safe_open(path, "pt") as file:
            self.facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if tuple(self.facts.get("shape", ())) != self.shape:
            raise ValueError(f"features={name} were made for shape {self.facts.get('shape')}, the data has {list(shape)}")
        self.network = Classifier(self.shape[0], **self.facts.get("classifier", {}))
        self.network.load_state_dict(state)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.num_features = self.network.head.in_features  # the name torchmetrics asks for
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 would change the distance
            return self.network.features(images)

    def card(self) -> dict:
        """What must stand beside a figure made with these features."""
        return {"features": self.name, "features_sha256": self.sha256, "resize": "none", **self.facts}
