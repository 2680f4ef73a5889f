"""Feature vectors of images: computed once, kept beside what they were made of."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from anysigma.data.images import image_hash
from anysigma.machine.distributed import everyones, gathered, rank_and_world
from anysigma.machine.progress import progress
from anysigma.machine.writing import written

BATCH = 512


def vectors(images: Tensor, features: nn.Module) -> Tensor:
    """uint8 `[N, C, H, W]` → float32 `[N, D]` on the CPU; where features have logits (`both`), these follow the D."""
    return torch.cat(of_pieces(images.split(BATCH), features))


def shared(images: Tensor, features: nn.Module) -> Tensor:
    """The same of images that every rank has, each rank computing its share; every rank calls it, and has them all."""
    rank, world = rank_and_world()
    rows = torch.arange(len(images)).split(BATCH)[rank::world]
    found = of_pieces([images[some] for some in rows], features)
    return gathered([k for some in rows for k in some.tolist()], torch.cat(found) if found else torch.empty(0))


def of_pieces(pieces: Sequence[Tensor], features: nn.Module) -> list[Tensor]:
    """The vectors of each piece."""
    device = next(features.parameters()).device if isinstance(features, nn.Module) else torch.device("cpu")
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):  # bfloat16 would change the distance
        return [joined(piece.to(device), features).cpu() for piece in progress(pieces, len(pieces), "features")]


def joined(images: Tensor, features: nn.Module) -> Tensor:
    """Features, or features and logits side by side."""
    return torch.cat(features.both(images), 1) if hasattr(features, "both") else features(images)


def cached_vectors(images: Tensor, features: nn.Module, cache: Path | None) -> Tensor:
    """`shared`, kept in `cache` by the images' hash, the features' sha256 and their resize rule; every rank calls it.

    They are computed where any rank does not find them; the first rank of a machine keeps them. Raises ValueError where
    the file of that name holds vectors of other images or features.
    """
    if cache is None:
        return shared(images, features)
    facts = {"images": image_hash(images), "features": features.name, "sha256": features.sha256,
             "resize": str(features.card().get("resize")), "n": str(len(images))}  # fmt: skip
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    path = cache / f"features-{features.name}-{facts['images']}-{key}.safetensors"
    there = path.is_file()
    if all(everyones(there)):
        return stored(path, facts)
    found = shared(images, features)
    if there or os.environ.get("LOCAL_RANK", "0") not in ("", "0"):
        return found
    with written(path) as aside:
        save_file({"vectors": found}, aside, metadata=facts)
    return found


def stored(path: Path, facts: dict[str, str]) -> Tensor:
    """Vectors read back; ValueError names the line of the header that differs from `facts`."""
    try:
        with safe_open(path, "pt") as file:
            header, found = file.metadata() or {}, file.get_tensor("vectors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, it will be made anew") from None
    for name, value in facts.items():
        if header.get(name) != value:
            raise ValueError(f"{path} belongs to other data: {name} is {header.get(name)}, not {value}; delete it")
    return found
