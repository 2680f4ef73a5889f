"""CIFAR-10 (Krizhevsky 2009): 60,000 colour 32x32 photographs in ten classes."""

import hashlib
import io
import os
import pickle
import tarfile
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from anysigma.data.download import fetch
from anysigma.data.patience import is_file, whole

FOLDER = "cifar-10-batches-py"
TRAIN = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
HELD_OUT = {"test_batch": "40351d587109b95175f43aff81a1287e"}
ARCHIVE, ARCHIVE_MD5 = "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
CACHE = Path("logs/cache/data")
AT_MOST = 1 << 28  # bytes of a file: the archive has 170 million


class CIFAR10:
    """The published split from the published python batches.

    `root`: the folder that holds cifar-10-batches-py (as torchvision has it) or the archive; null: logs/cache/data.
    `download` fetches the archive where both are absent. Every file is held to its md5 before it is unpickled, and the
    unpickler knows arrays alone. Raises FileNotFoundError for an absent file, ValueError for another content,
    ConnectionError without a network.
    """

    grey_levels = 256

    def __init__(self, root: str | None = None, download: bool = False):
        self.root, self.download = root, download

    @property
    def train(self) -> Tensor:
        """uint8 `[50000, 3, 32, 32]`."""
        return self._train[0]

    @property
    def held_out(self) -> Tensor:
        """uint8 `[10000, 3, 32, 32]`."""
        return self._held_out[0]

    @property
    def labels(self) -> Tensor:
        """Class of every image, long `[60000]`, training images first."""
        return torch.cat([self._train[1], self._held_out[1]])

    @cached_property
    def _train(self) -> tuple[Tensor, Tensor]:
        return self._read(TRAIN)

    @cached_property
    def _held_out(self) -> tuple[Tensor, Tensor]:
        return self._read(HELD_OUT)

    def _read(self, files: dict[str, str]) -> tuple[Tensor, Tensor]:
        folder = self._folder(files)
        images, labels = zip(*(batch(folder / name, md5) for name, md5 in files.items()), strict=True)
        return torch.cat(images), torch.cat(labels)

    def _folder(self, files: dict[str, str]) -> Path:
        root = CACHE if self.root is None else Path(self.root)
        folder, archive = root / FOLDER, root / ARCHIVE
        missing = [name for name in files if not is_file(folder / name)]
        if not missing:
            return folder
        if not is_file(archive):
            instead = f"data.root=FOLDER names the folder that holds {FOLDER}"
            if not self.download:
                here = f"no {missing[0]} in {folder} and no {ARCHIVE} in {root}"
                raise FileNotFoundError(f"{here}: {instead}, data.download=true fetches it")
            fetch(URL, archive, lambda path: check(content(path), path, ARCHIVE_MD5), instead)
        unpack(archive, root)
        return folder


def content(path: Path) -> bytearray:
    """The bytes of a file, no more than any of the published ones has."""
    return whole(path, at_most=AT_MOST)


def check(data: bytes | bytearray, path: Path, md5: str) -> None:
    """Raises ValueError unless the data have this md5."""
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is not the published file: its md5 is not {md5}; delete it and get it anew")


def batch(path: Path, md5: str) -> tuple[Tensor, Tensor]:
    """One file as images uint8 `[N, 3, 32, 32]` and labels long `[N]`; raises ValueError for anything else."""
    data = content(path)
    check(data, path, md5)
    try:
        found = ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images, labels = found[b"data"].reshape(-1, 3, 32, 32), np.array(found[b"labels"], np.int64)
    except (pickle.UnpicklingError, EOFError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no batch of CIFAR-10: {str(error) or type(error).__name__}") from error
    if images.dtype != np.uint8 or len(images) != len(labels):
        raise ValueError(f"{path} is no batch of CIFAR-10: {images.dtype} images {images.shape}, {len(labels)} labels")
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


class ArraysOnly(pickle.Unpickler):
    """An unpickler of dictionaries, lists, numbers, strings and numpy arrays; any other name raises UnpicklingError."""

    KNOWN = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],  # its module moved with numpy 2
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return self.KNOWN[module, name]


def unpack(archive: Path, root: Path) -> None:
    """The six batches out of the archive, each written aside and renamed.

    Raises ValueError for another archive, and for one with links or names that lead out of `root`.
    """
    data = content(archive)
    check(data, archive, ARCHIVE_MD5)
    wanted = {f"{FOLDER}/{name}" for name in (*TRAIN, *HELD_OUT)}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:  # what was checked, whatever lies there now
        members = tar.getmembers()
        for member in members:
            path = PurePosixPath(member.name)
            if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
                raise ValueError(
                    f"{archive} holds {member.name}, a link or a name that leads elsewhere: nothing is unpacked"
                )
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        for member in members:
            if member.name in wanted and member.isfile():
                part = root / f"{member.name}.{os.getpid()}.part"
                part.write_bytes(tar.extractfile(member).read())
                part.replace(root / member.name)
