"""Fréchet distances: reported by torch-fidelity, monitored by torchmetrics, in features named for what they are."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anysigma.diffusion.noise import stream
from anysigma.metrics.vectors import vectors


class Features(Protocol):
    """A frozen feature network, uint8 `[B, C, H, W]` → float32 `[B, num_features]`, that can name itself."""

    name: str
    metric: str  # what a distance in these features is called
    sha256: str
    num_features: int

    def __call__(self, images: Tensor) -> Tensor: ...

    def card(self) -> dict: ...


class Vectors(Dataset):
    """Feature vectors in the place where torch-fidelity looks for images: its extractor then has nothing to do."""

    def __init__(self, vectors: Tensor):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, index: int) -> Tensor:
        return self.vectors[index]


class Measure(NamedTuple):
    """What a figure is: its name, whether lower (-1) or higher (1) is better, its name in words, the features' name."""

    metric: str
    better: int
    label: str
    features: str


INCEPTION_SPLITS = 10  # torch-fidelity's isc_splits

# torch-fidelity's names for what it returns, and ours, to which the features' name is added; which way is better.
NAMES = {
    "kernel_inception_distance_mean": ("kid", -1, "KID"),
    "precision": ("precision", 1, "Precision"),
    "recall": ("recall", 1, "Recall"),
    "inception_score_mean": ("inception_score", 1, "Inception Score"),
}


def the_distance(features: Features) -> Measure:
    """The Fréchet distance in these features: called FID in Inception's alone."""
    return Measure(features.metric, -1, "FID" if features.metric == "fid" else "Fréchet distance", features.name)


def distance(generated: Tensor, reference: Tensor, features: Features) -> float:
    """Fréchet distance between two sets of uint8 images, computed by torch-fidelity in our features."""
    return frechet(vectors(generated, features), vectors(reference, features), features)


def frechet(generated: Tensor, reference: Tensor, features: Features) -> float:
    """The same between two sets of feature vectors `[N, D]`."""
    return calculate(generated, reference, features, fid=True)["frechet_inception_distance"]


def measures(generated: Tensor, reference: Tensor, features: Features) -> dict[Measure, float]:
    """The distance and, in the same features, KID, precision and recall; Inception Score where they have logits.

    Both sets are feature vectors. One extractor serves all: torch-fidelity alone would take VGG16 for precision and
    recall, which depend on both counts: they are taken between sets of equal size, the larger one's first rows in a
    seeded order.
    """
    wanted = {"fid": True, "kid": True, "isc": hasattr(features, "both")}
    n = min(len(generated), len(reference))
    found = calculate(generated, reference, features, **wanted, kid_subset_size=min(1000, n), isc_splits=INCEPTION_SPLITS)
    found |= calculate(at_most(generated, n), at_most(reference, n), features, prc=True, prc_batch_size=1000)
    measured = {the_distance(features): found["frechet_inception_distance"]}
    for theirs, (ours, better, label) in NAMES.items():
        if theirs in found:
            measured[Measure(f"{ours}_{features.name}", better, label, features.name)] = found[theirs]
    return measured


def own(found: Tensor, features: Features) -> Tensor:
    """Feature vectors without the logits that may follow them."""
    return found[:, : features.num_features]


def at_most(rows: Tensor, n: int) -> Tensor:
    """n rows in a seeded order, or all as they are."""
    return rows if len(rows) == n else rows[torch.randperm(len(rows), generator=stream(0))[:n]]


def calculate(generated: Tensor, reference: Tensor, features: Features, **wanted: Any) -> dict[str, float]:
    """torch-fidelity's public call on feature vectors, on the CPU, nothing cached outside logs/."""
    import torch_fidelity

    found = torch_fidelity.calculate_metrics(
        input1=Vectors(generated), input2=Vectors(reference), cuda=False, batch_size=4096, verbose=False,
        feature_extractor=registered(features.num_features), cache=False, save_cpu_ram=True, **wanted,
    )  # fmt: skip
    return {name: float(value) for name, value in found.items()}


def registered(D: int) -> str:
    """The name under which torch-fidelity knows vectors of D features, with logits behind them or without."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    name = f"anysigma-vectors-{D}"
    if name in FEATURE_EXTRACTORS_REGISTRY:
        return name

    class Extractor(FeatureExtractorBase):
        """Hands vectors back as they came."""

        def __init__(self, name: str, features_list: list[str], **_: Any):
            super().__init__(name, features_list)

        def forward(self, vectors: Tensor) -> tuple[Tensor, ...]:
            layers = {"features": vectors[:, :D], "logits": vectors[:, D:]}
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
