"""CIFAR-10 features: the pooled layer of a ResNet-56 (He et al. 2016, section 4.2), weights by path."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anysigma.metrics.inception import held_to

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions; a change of width is a strided shortcut padded with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(h + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra, self.extra)))


class ResNet(nn.Module):
    """Three stages of `n` blocks, widths 16, 32, 64: 6n + 2 layers; float `[B, 3, 32, 32]` → features `[B, 64]`."""

    def __init__(self, n: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32, 2 if i == 0 else 1) for i in range(n)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64, 2 if i == 0 else 1) for i in range(n)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return h.mean((2, 3))


class CifarResNet56(nn.Module):
    """uint8 `[B, 3, 32, 32]` → the 64 pooled features of akamaster's ResNet-56; the distance is fd_cifar_resnet56.

    The file (pytorch_resnet_cifar10, BSD-2) is held to `sha256`, its first digits. Raises FileNotFoundError, ValueError.
    """

    name, metric, num_features = "cifar_resnet56", "fd_cifar_resnet56", 64

    def __init__(self, weights_path: str | None = None, sha256: str | None = "4bfd9763"):
        super().__init__()
        if weights_path is None:
            raise FileNotFoundError("features=cifar_resnet56 needs features.weights_path=…/resnet56-4bfd9763.th")
        self.sha256 = held_to(Path(weights_path), sha256)
        state = torch.load(weights_path, map_location="cpu", weights_only=True)["state_dict"]
        self.network = ResNet(9)
        self.network.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != (3, 32, 32):
            raise ValueError(f"features=cifar_resnet56 take 3x32x32 images, not {'x'.join(map(str, images.shape[1:]))}")
        with torch.autocast(images.device.type, enabled=False):
            return self.network((images.float() / 255 - self.mean) / self.std)

    def card(self) -> dict:
        """What must stand beside a figure made with these features."""
        return {"features": self.name, "features_sha256": self.sha256, "resize": "none"}
