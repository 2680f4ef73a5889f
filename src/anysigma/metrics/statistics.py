"""Means with their errors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mean_and_error(values: Tensor | Sequence[float]) -> tuple[float, float | None]:
    """Mean of independent values (images, disjoint sets) and its standard error s.d./√n; no error from one value."""
    v = torch.as_tensor(values, dtype=torch.float64)
    return v.mean().item(), (v.std() / len(v) ** 0.5).item() if len(v) > 1 else None
