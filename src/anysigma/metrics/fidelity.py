"""Fréchet distances: reported by torch-fidelity, monitored by torchmetrics, in features named for what they are."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anysigma.noise import stream


class Features(Protocol):
    """A frozen feature network, uint8 `[B, C, H, W]` → float32 `[B, num_features]`, that can name itself."""

    name: str
    metric: str  # what a distance in these features is called
    sha256: str
    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...

    def card(self) -> dict: ...


class Images(Dataset):
    """uint8 images as torch-fidelity wants them."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


# torch-fidelity's names for what it returns, and ours, to which the features' name is added.
NAMES = {
    "kernel_inception_distance_mean": "kid",
    "precision": "precision",
    "recall": "recall",
    "inception_score_mean": "inception_score",
}


def distance(generated: Tensor, reference: Tensor, features: Features) -> float:
    """Fréchet distance between two sets of uint8 images, by torch-fidelity's `calculate_metrics` with our extractor."""
    return calculate(generated, reference, features, fid=True)["frechet_inception_distance"]


def measures(generated: Tensor, reference: Tensor, features: Features) -> dict[str, float]:
    """The distance and, in the same features, KID, precision and recall; Inception Score where they have logits.

    One extractor is named for all: torch-fidelity alone would take VGG16 for precision and recall.
    """
    wanted = {"fid": True, "kid": True, "prc": True, "isc": hasattr(features, "both")}
    subset = min(1000, len(generated), len(reference))
    found = calculate(generated, reference, features, **wanted, kid_subset_size=subset)
    others = {f"{ours}_{features.name}": found[theirs] for theirs, ours in NAMES.items() if theirs in found}
    return {features.metric: found["frechet_inception_distance"], **others}


def calculate(generated: Tensor, reference: Tensor, features: Features, **wanted: Any) -> dict[str, float]:
    """torch-fidelity's public call with our extractor, on the CPU, nothing cached outside logs/."""
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=Images(generated), input2=Images(reference), cuda=False, batch_size=512, verbose=False,
        feature_extractor=registered(features), cache=False, save_cpu_ram=True, **wanted,
    )  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def registered(features: Features) -> str:
    """The name under which torch-fidelity knows this extractor; registered once per weights."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    name = f"{features.name}-{features.sha256[:12]}"
    if name in FEATURE_EXTRACTORS_REGISTRY:
        return name

    class Extractor(FeatureExtractorBase):
        """Hands uint8 images to ours and its vector back."""

        def __init__(self, name: str, features_list: list[str], **_: Any):
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            if "logits" not in self.features_list:
                return (features(images),)
            layers = dict(zip(("features", "logits"), features.both(images), strict=True))
            return tuple(layers[name] for name in self.features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features", "logits")

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> None:
            return None

    register_feature_extractor(name, Extractor)
    return name


def floor(images: Tensor, n: int, splits: int, features: Features, cache: Path | None = None) -> dict:
    """The same distance with n real images against all other real ones: mean and sd over seeded random splits.

    `images`: all real images, uint8; what a perfect model could reach at this n. Kept in `cache`, as it depends on
    images, features, n and splits alone.
    """
    key = hashlib.sha256(images.contiguous().numpy()).hexdigest()[:16]
    path = cache and cache / f"floor-{key}-{features.name}-{features.sha256[:12]}-{n}-{splits}.json"
    if path and path.is_file():
        return json.loads(path.read_text())
    halves = real_splits(images, n, splits)
    values = torch.tensor([distance(one, rest, features) for one, rest in halves], dtype=torch.float64)
    result = {"mean": values.mean().item(), "sd": values.std().item(), "splits": splits}
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
    return result


def real_splits(images: Tensor, n: int, splits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Seeded random splits into n images and the others."""
    if not 1 < n < len(images) - 1:
        raise ValueError(f"a floor needs 1 < n < {len(images) - 1} real images, n={n} was asked for")
    for split in range(splits):
        order = torch.randperm(len(images), generator=stream(split))
        yield images[order[:n]], images[order[n:]]


def mean_and_error(values: list[float]) -> tuple[float, float | None]:
    """Mean and standard error s.d./√K over K disjoint sets; no error from one set."""
    v = torch.tensor(values, dtype=torch.float64)
    return v.mean().item(), (v.std() / len(v) ** 0.5).item() if len(v) > 1 else None


class Monitor:
    """The distance while training: torchmetrics' FID class over our extractor, real statistics gathered once.

    `shape` (C, H, W) of the images. `antialias=False` is the resize rule that torch-fidelity has too.
    """

    def __init__(self, features: Features, shape: tuple[int, ...], device: torch.device):
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.metric = FrechetInceptionDistance(
            feature=features, reset_real_features=False, input_img_size=shape, antialias=False
        ).to(device)
        self.device = device

    def update(self, images: Tensor, *, real: bool) -> None:
        """Add uint8 images, in pieces that fit."""
        for piece in images.split(500):
            self.metric.update(piece.to(self.device), real=real)

    def compute(self) -> float:
        """The distance, over all ranks; the generated side starts anew afterwards."""
        value = self.metric.compute().item()
        self.metric.reset()
        return value
