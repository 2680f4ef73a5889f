"""The decoded copy of a folder of images: written whole, held to its size when it is opened, watched while it is mapped."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from anysigma.data.images import image_hash
from anysigma.data.patience import whole

SPLITS = ("train", "held_out")
MADE = "made.json"  # written last: which files were left out, and the hash of the rest
WHOLE = 1 / 32  # of the host's memory, as each of several processes has its own: what takes more is mapped


class Damaged(ValueError):
    """A decoded copy that is not whole: it can be made again."""


@dataclass
class Split:
    """Images uint8 `[N, C, H, W]`. `file`: what they are mapped from, with its size and date; None: in memory, whole.

    A page of a mapped file that is gone when it is read ends the process with SIGBUS, which no line can explain. So the
    file is kept open, which its removal does not change, and `intact` is asked before its pages are.
    """

    images: Tensor
    path: Path
    file: BinaryIO | None = None
    was: tuple[int, int] | None = None

    def intact(self) -> None:
        """Raises OSError where the file was cut or written to since it was opened."""
        if self.file is not None and size_and_date(self.file) != self.was:
            raise OSError(f"{self.path} was changed while it was in use; remove {self.path.parent} and start again")


@dataclass
class Decoded:
    """What a folder became: both splits, the files that were left out, the hash of the images."""

    train: Split
    held_out: Split
    skipped: list[str]
    hash: str


def opened(folder: Path, shape: Sequence[int], patience: float) -> Decoded | None:
    """The decoded copy in `folder`, None where there is none; raises Damaged where it is not whole."""
    if not folder.is_dir():
        return None
    try:
        made = json.loads(whole(folder / MADE, patience))
        train, held_out = (_split(folder / f"{split}.npy", tuple(shape), patience) for split in SPLITS)
        return Decoded(train, held_out, [str(line) for line in made["skipped"]], str(made["hash"]))
    except TimeoutError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"{folder} is damaged ({error})") from None


def _split(path: Path, shape: tuple[int, ...], patience: float) -> Split:
    with path.open("rb") as file:
        try:
            np.lib.format.read_magic(file)
            found, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # a damaged header ends in whatever its reader stumbles over
            raise Damaged(f"{path.name}: {type(error).__name__}") from None
        start, size = file.tell(), os.fstat(file.fileno()).st_size
    if found[1:] != shape or fortran or dtype != np.uint8 or not found[0] or size != start + prod(found):
        raise Damaged(f"{path.name}: {size} bytes are not its images {list(found)}")
    if size <= WHOLE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        content = whole(path, patience)
        if len(content) != size:
            raise Damaged(f"{path.name}: it was cut while it was read")
        return Split(torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(found)), path)
    file = path.open("rb")  # not closed while its pages are used
    # copy on write: torch wants writable memory, and the file must stay as it is
    images = np.memmap(file, np.uint8, "c", start, found)
    return Split(torch.from_numpy(images), path, file, size_and_date(file))


def size_and_date(file: BinaryIO) -> tuple[int, int]:
    """Bytes and date in ns of an open file."""
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def finish(folder: Path, shape: Sequence[int], skipped: list[str], patience: float) -> None:
    """Read back what was written and add the rest: a decoded copy without it is none."""
    hash = image_hash(*(_split(folder / f"{split}.npy", tuple(shape), patience).images for split in SPLITS))
    (folder / MADE).write_text(json.dumps({"skipped": skipped, "hash": hash}))


def write_npy(file: BinaryIO, images: Iterator[np.ndarray], shape: Sequence[int]) -> int:
    """Images uint8 `[*shape]` as one .npy `[N, *shape]` without holding them; returns N.

    Written like any file, not through a memory map: a full disk is then an OSError and not a crash.
    """

    def header(n: int) -> None:
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)})

    header(0)
    start, n = file.tell(), 0
    for image in images:
        file.write(np.ascontiguousarray(image))
        n += 1
    header(n)  # numpy leaves room for a first axis of any length
    if file.tell() != start:
        raise ValueError(f"{n} images make a header of another length: {file.name} cannot be written")
    return n
