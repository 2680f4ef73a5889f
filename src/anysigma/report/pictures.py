"""Images as pictures on disk."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anysigma.machine.writing import written

# A picture's longer side is brought to about this many pixels, by whole factors, so that 8x8 scans can be seen.
SIDE = 960
FRAME, REST = 120, 2000  # milliseconds of an animation's frames, and of its last


def grid(images: Tensor, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """uint8 `[N, C, H, W]` → one picture uint8 `[H', W', 3]`, row by row, enlarged by a whole factor."""
    N, _, H, W = images.shape
    columns = columns or math.ceil(math.sqrt(N))
    rows = math.ceil(N / columns)
    canvas = torch.full((3, rows * (H + gap) + gap, columns * (W + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(rgb(images)):
        y, x = (i // columns) * (H + gap) + gap, (i % columns) * (W + gap) + gap
        canvas[:, y : y + H, x : x + W] = image
    factor = max(1, SIDE // max(canvas.shape[1:]))
    return canvas.permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)


def rgb(images: Tensor) -> Tensor:
    """Any number of channels as three: one is repeated, two get an empty third, more are cut."""
    C = images.shape[1]
    if C == 1:
        return images.expand(-1, 3, -1, -1)
    return torch.cat([images, torch.zeros_like(images[:, :1])], 1) if C == 2 else images[:, :3]


def save_png(picture: np.ndarray, path: Path) -> Path:
    """Write and return the path; `[F, H, W, 3]` becomes an animated PNG that rests on its last frame."""
    first, *others = map(Image.fromarray, picture[None] if picture.ndim == 3 else picture)
    durations = [FRAME] * len(others) + [REST]
    more = {"save_all": True, "append_images": others, "duration": durations, "loop": 0} if others else {}
    with written(path) as aside:
        first.save(aside, "PNG", **more)
    return path
