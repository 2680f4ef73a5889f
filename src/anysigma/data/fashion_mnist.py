"""Fashion-MNIST (Xiao et al. 2017): 70,000 grey 28x28 pictures of clothes in ten classes."""

import gzip
import hashlib
import io
import zlib
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from anysigma.data.download import fetch
from anysigma.data.patience import is_file, whole

# Debian's package packs the published content anew, so the hash is that of the content: bytes, sha256.
FILES = {
    "train-images-idx3-ubyte": (47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    "train-labels-idx1-ubyte": (60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    "t10k-images-idx3-ubyte": (7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    "t10k-labels-idx1-ubyte": (10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
}
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
WIDEST = 114  # pixels on a side: 256x256
PACKAGE, DEBIAN = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")
CACHE = Path("logs/cache/data/fashion_mnist")


class FashionMNIST:
    """The published split, zero-padded by `pad` on every side (2: 32x32, which halves five times).

    `root`: the folder of the four idx files, plain or .gz; null: where Debian's package puts them, else
    logs/cache/data/fashion_mnist. `download` fetches what is absent there. Every file is held to its sha256.
    Raises FileNotFoundError for an absent file, ValueError for another content, ConnectionError without a network.
    """

    grey_levels = 256

    def __init__(self, root: str | None = None, pad: int = 2, download: bool = False):
        if not 0 <= pad <= WIDEST:
            raise ValueError(f"data.source.pad={pad}: 0 or more pixels can be added, at most {WIDEST}")
        self.root, self.pad, self.download = root, pad, download

    @cached_property
    def train(self) -> Tensor:
        """uint8 `[60000, 1, 28 + 2·pad, 28 + 2·pad]`."""
        return self._images("train-images-idx3-ubyte")

    @cached_property
    def held_out(self) -> Tensor:
        """uint8 `[10000, 1, 28 + 2·pad, 28 + 2·pad]`."""
        return self._images("t10k-images-idx3-ubyte")

    @cached_property
    def labels(self) -> Tensor:
        """Class of every image, long `[70000]`, training images first."""
        names = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
        return torch.cat([torch.from_numpy(self._read(name)[8:].astype(np.int64)) for name in names])

    @property
    def folder(self) -> Path:
        """Where the files are looked for."""
        if self.root is not None:
            return Path(self.root)
        return DEBIAN if DEBIAN.is_dir() else CACHE

    def _images(self, name: str) -> Tensor:
        images = torch.from_numpy(self._read(name)[16:].reshape(-1, 1, 28, 28).copy())
        return pad(images, [self.pad] * 4) if self.pad else images

    def _read(self, name: str) -> np.ndarray:
        return np.frombuffer(content(self._path(name), name), np.uint8)

    def _path(self, name: str) -> Path:
        for path in (self.folder / name, self.folder / f"{name}.gz"):
            if is_file(path):
                return path
        instead = f"Debian's package {PACKAGE} puts the files into {DEBIAN}, data.root=FOLDER names another place"
        if self.download:
            return fetch(f"{URL}{name}.gz", self.folder / f"{name}.gz", lambda path: _verify(path, name), instead)
        raise FileNotFoundError(f"no {name}[.gz] in {self.folder}: {instead}, data.download=true fetches them")


def content(path: Path, name: str) -> bytes | bytearray:
    """The bytes of the idx file `name` at `path`, unpacked; raises ValueError where they are not the published ones."""
    size, sha256 = FILES[name]
    data = whole(path, at_most=2 * size + 1024)  # packed it takes less
    try:
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(size + 1)  # no more than one byte too many, whatever it unpacks to
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}; delete it and get it anew") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{path} is not the published {name}: its sha256 differs; delete it and get it anew")
    return data


def _verify(path: Path, name: str) -> None:
    content(path, name)
