"""Generated images as files that other tools read."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from anysigma.machine.distributed import is_first
from anysigma.studies.generated import Images


def save(images: Images, form: str | None, folder: Path) -> None:
    """Nothing; images/<k>.png, each rank its own; or images.npz with `arr_0` uint8 `[n, H, W, C]` as the field's tools
    read it, for which the first rank has to have them all.
    """
    if form == "npz":
        arrays = arrays_of(images.all())
        if is_first():
            np.savez(folder / "images.npz", arrays)
    if form == "png":
        arrays = arrays_of(images.mine)
        if arrays.shape[3] not in (1, 3):
            raise ValueError(f"save=png takes 1 or 3 channels, these images have {arrays.shape[3]}; save=npz takes any")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for k, array in zip(images.ks, arrays.squeeze(3) if arrays.shape[3] == 1 else arrays, strict=True):
            Image.fromarray(array).save(folder / "images" / f"{k:06d}.png")


def arrays_of(images: Tensor) -> np.ndarray:
    """uint8 `[n, H, W, C]`."""
    return images.permute(0, 2, 3, 1).numpy()
