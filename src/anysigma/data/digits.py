"""scikit-learn's digits: 1,797 real 8x8 scans with 17 grey levels, inside its wheel, no download."""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

TRAINING = 1437


class Digits:
    """The digits in one fixed random order (seed 0): the first 1,437 train, the last 360 are held out.

    Grey levels 0..16 are spread over 0..255. The order is shuffled because the file is sorted by writer.
    """

    grey_levels = 17

    @property
    def train(self) -> Tensor:
        """uint8 `[1437, 1, 8, 8]`."""
        return self._images_and_labels[0][:TRAINING]

    @property
    def held_out(self) -> Tensor:
        """uint8 `[360, 1, 8, 8]`."""
        return self._images_and_labels[0][TRAINING:]

    @property
    def labels(self) -> Tensor:
        """Class of every image, long `[1797]`, training images first."""
        return self._images_and_labels[1]

    @cached_property
    def _images_and_labels(self) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        try:
            digits = load_digits()
        except Exception as error:  # a damaged file ends in whatever its reader stumbles over
            raise ValueError(f"scikit-learn's digits cannot be read ({type(error).__name__}): install it anew") from None
        order = np.random.RandomState(0).permutation(len(digits.target))  # a frozen stream: the same for all versions
        images = torch.from_numpy(digits.images[order] * (255 / 16)).round().to(torch.uint8)
        return images[:, None], torch.from_numpy(digits.target[order]).long()
