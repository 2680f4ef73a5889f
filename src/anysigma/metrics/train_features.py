"""Train the shipped feature network of a data set again: `python -m anysigma.metrics.train_features digits`.

The network sees the training split alone; its accuracy on the held-out split goes into the file's header.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from anysigma.diffusion.noise import stream
from anysigma.metrics.features import Classifier

EPOCHS = {"digits": 60, "fashion_mnist": 8}
# What differs from the classifier's defaults; 32x32 pixels need a wider view than 8x8 before the average is taken.
NETWORK = {"digits": {}, "fashion_mnist": {"widths": [32, 64, 96], "pools": [1, 2, 3]}}


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """The images moved by up to one pixel each way: without it 1,437 scans are learned by heart."""
    dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
    return torch.roll(images, (dy, dx), (2, 3))


def train(images: Tensor, labels: Tensor, epochs: int, network: dict[str, Any], seed: int = 0) -> Classifier:
    """Adam with a cosine-decayed learning rate, batches of 128; `network` holds further arguments of `Classifier`."""
    torch.manual_seed(seed)
    generator = stream(seed)
    network = Classifier(images.shape[1], **network)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(network(shifted(images[batch], generator)), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


@torch.inference_mode()
def accuracy(network: Classifier, images: Tensor, labels: Tensor) -> float:
    """Share of images classified rightly, 0..1."""
    right = [network(batch).argmax(1) == truth for batch, truth in zip(images.split(500), labels.split(500), strict=True)]
    return torch.cat(right).double().mean().item()


def data_set(name: str):
    """The data set that a feature network is trained on: an `ImageSource` with `labels`, training images first."""
    from anysigma.data.digits import Digits
    from anysigma.data.fashion_mnist import FashionMNIST

    return {"digits": Digits, "fashion_mnist": FashionMNIST}[name]()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=EPOCHS)
    parser.add_argument("--epochs", type=int, default=None)
    arguments = parser.parse_args()
    data = data_set(arguments.data)
    n = len(data.train)
    further = NETWORK[arguments.data]
    network = train(data.train, data.labels[:n], arguments.epochs or EPOCHS[arguments.data], further)
    facts = {
        "shape": list(data.train.shape[1:]),
        "held_out_accuracy": round(accuracy(network, data.held_out, data.labels[n:]), 4),
        "trained_on": f"{n} training images",
        **({"classifier": further} if further else {}),
    }
    path = Path(str(files("anysigma.metrics") / f"weights/{arguments.data}.safetensors"))
    save_file(network.state_dict(), path, {"facts": json.dumps(facts)})
    path.chmod(0o644)  # safetensors writes 600, which an installed package could not be read with
    print(path, facts)


if __name__ == "__main__":
    main()
