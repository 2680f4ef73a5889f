"""Inception features as torch-fidelity computes them: the only distance that may be called fid."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from anysigma.metrics.features import NoFeatures

# The name of the published file carries the first 8 hex digits of its sha256.
PUBLISHED = "6726825d"
FOLDER = Path("logs/cache/torch")


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of torch-fidelity's InceptionV3 (TF 2015 weights, TF1 resize to 299), uint8 → float32.

    One channel is repeated to three. `weights_path` null: downloaded once below logs/cache, held to the published
    sha256. A file of your own is held to `sha256` (its first digits; null: any, and the card says so).
    Raises FileNotFoundError where there are no weights to be had, ValueError for wrong ones.
    """

    name, metric, num_features = "inception", "fid", 2048

    def __init__(self, weights_path: str | None = None, sha256: str | None = PUBLISHED):
        super().__init__()
        path = Path(weights_path) if weights_path else downloaded()
        self.sha256 = held_to(path, sha256)
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity itself would run a pickle's code
        except Exception as error:
            raise ValueError(f"features.weights_path={path}: no plain state dict ({type(error).__name__})") from None
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(path))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.both(images)[0]

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[B, 2048]` and unbiased logits `[B, 1008]`."""
        with torch.autocast(images.device.type, enabled=False):
            images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
            if images.shape[1] != 3:
                raise ValueError(f"Inception takes 1 or 3 channels, these images have {images.shape[1]}")
            return self.network(images.contiguous())

    def card(self) -> dict:
        """What must stand beside a figure made with these features."""
        weights = "published" if self.sha256.startswith(PUBLISHED) else "not the published ones"
        return {"features": self.name, "features_sha256": self.sha256, "features_weights": weights, "resize": "TF1, 299"}


def fitting(shape: Sequence[int], weights_path: str | None = None, sha256: str | None = PUBLISHED) -> InceptionFeatures:
    """Inception's features for images `shape` (C, H, W) of 1 or 3 channels. Raises NoFeatures for any other number."""
    if shape[0] not in (1, 3):
        raise NoFeatures(f"Inception takes 1 or 3 channels, these images have {shape[0]}; features=NAME chooses others")
    return InceptionFeatures(weights_path, sha256)


def held_to(path: Path, sha256: str | None) -> str:
    """The file's sha256; ValueError unless it starts with `sha256`, FileNotFoundError where it is absent."""
    if not path.is_file():
        raise FileNotFoundError(f"features.weights_path={path}: there is no such file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 and not found.startswith(sha256):
        raise ValueError(
            f"features.weights_path={path}: sha256 {found[:8]}…, expected {sha256}…; the file is not the one meant"
        )
    return found


def downloaded() -> Path:
    """torch-fidelity's weights below logs/cache, fetched once; FileNotFoundError without a network."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = FOLDER / os.path.basename(URL_INCEPTION_V3)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=PUBLISHED)
        except (URLError, OSError) as error:
            said = f"Inception's weights could not be fetched ({error}); features.weights_path=FILE takes a copy"
            raise FileNotFoundError(said) from None
    return path
