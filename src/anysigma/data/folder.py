"""Any folder of PNG, JPEG and WebP files, decoded once into a cache that training then reads alone."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from anysigma.data.ahead import ahead
from anysigma.data.decode import decode, quiet
from anysigma.machine.distributed import one_at_a_time, say
from anysigma.machine.threads import affinity

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMAT = 1  # of the cache; another number makes new ones
WAITING = 8  # decoded images of a thread that wait for a slow one before them


class ImageFolder:
    """The images below `root`, flat or in class folders, as uint8 `[N, *shape]` in the order of their names.

    `shape` (C, H, W), C 1 or 3. `crop`: center resizes every image until it covers the shape and cuts the middle out;
    none refuses other sizes. `background`: the grey level 0..255 under transparent pixels. `held_out`: the share held
    out, by a hash of each file's name, so that a file stays on its side when others come; each side gets at least one.
    `on_error`: stop at the first file that is no whole image, or skip such files and say which. `cache`: the folder of
    the decoded copies; a change of any name, size, date or setting makes another. Of several processes one decodes,
    on all cores.
    Raises FileNotFoundError, PermissionError or ValueError, always in one line.
    """

    grey_levels = 256

    def __init__(
        self,
        root: str | None,
        shape: Sequence[int],
        crop: str = "center",
        background: int = 255,
        held_out: float = 0.1,
        on_error: str = "stop",
        cache: str = "logs/cache/data",
    ):
        if root is None:
            raise FileNotFoundError("data.root=null: no folder is named; data.root=FOLDER names one")
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ValueError(f"data.shape={list(shape)}: [C, H, W] with 1 or 3 channels is what files can give")
        if crop not in ("center", "none"):
            raise ValueError(f"data.source.crop={crop}: center or none")
        if on_error not in ("stop", "skip"):
            raise ValueError(f"data.source.on_error={on_error}: stop or skip")
        if not 0 <= background <= 255:
            raise ValueError(f"data.source.background={background}: a grey level 0..255")
        if not 0 < held_out < 1:
            raise ValueError(f"data.source.held_out={held_out}: a share between 0 and 1")
        self.root, self.shape, self.crop, self.background = Path(root), tuple(shape), crop, background
        self.share, self.on_error, self.cache = held_out, on_error, Path(cache)

    @property
    def train(self) -> Tensor:
        """uint8 `[N, *shape]`, read from the cache page by page."""
        return self._splits[0]

    @property
    def held_out(self) -> Tensor:
        """uint8 `[M, *shape]`, read from the cache page by page."""
        return self._splits[1]

    @cached_property
    def _splits(self) -> tuple[Tensor, Tensor]:
        files = listing(self.root)
        key = (FORMAT, str(self.root.resolve()), files, self.shape, self.crop, self.background, self.share, self.on_error)
        folder = self.cache / f"folder-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
        if not folder.is_dir():
            self._make_once(folder, [name for name, _, _ in files])
        skipped = json.loads((folder / "skipped.json").read_text())
        if skipped:
            more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
            say(f"{self.root}: {len(skipped)} of {len(files)} images left out: {'; '.join(skipped[:3])}{more}")
        # copy on write: torch wants writable memory, and the file must stay as it is
        train, held_out = (np.load(folder / f"{split}.npy", mmap_mode="c") for split in ("train", "held_out"))
        return torch.from_numpy(train), torch.from_numpy(held_out)

    def _make_once(self, folder: Path, names: list[str]) -> None:
        """The first process decodes; the others wait for it, and one of them takes over where it fails."""
        self.cache.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with one_at_a_time(lock, f"{self.root}: another process decodes these images, waiting for it"):
            if not folder.is_dir():
                self._make(folder, names)

    def _make(self, folder: Path, names: list[str]) -> None:
        """Decode into a folder aside, then rename it: a cache that is there is whole."""
        for left in folder.parent.glob(f"{folder.name}.*.part"):  # of a process that was killed: one decodes at a time
            shutil.rmtree(left, ignore_errors=True)
        aside = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        aside.mkdir(parents=True, exist_ok=True)
        try:
            skipped: list[str] = []
            for split, members in zip(("train", "held_out"), divided(names, self.share), strict=True):
                images = self._decoded(members, f"{self.root.name}: {split}", skipped)
                with (aside / f"{split}.npy").open("wb") as file, quiet(), closing(images):
                    if not write_npy(file, images, self.shape):
                        raise ValueError(f"{self.root}: no image is left for {split}; the first left out: {skipped[0]}")
            (aside / "skipped.json").write_text(json.dumps(skipped))
            try:
                aside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster with the same content
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _decoded(self, names: list[str], line: str, skipped: list[str]) -> Iterator[np.ndarray]:
        threads = len(affinity())
        with closing(ahead(self._tried, names, threads, WAITING * threads)) as found:
            for name, image in zip(names, track(found, line, total=len(names), transient=True), strict=True):
                if not isinstance(image, ValueError):
                    yield image
                elif self.on_error == "stop":
                    raise ValueError(
                        f"{self.root / name}: {image}; data.source.on_error=skip leaves such files out"
                    ) from image
                else:
                    skipped.append(printable(f"{name} ({image})"))

    def _tried(self, name: str) -> np.ndarray | ValueError:
        """The image, or why there is none: what that means is decided where the images stand in order."""
        try:
            return decode(self.root / name, self.shape, self.crop, self.background)
        except ValueError as error:
            return error


def printable(text: str) -> str:
    """One line that every terminal can write: a file's name may hold line feeds and bytes that are no characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listing(root: Path) -> list[tuple[str, int, int]]:
    """(relative name, bytes, date in ns) of every image file below `root`, by name; hidden ones do not count."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise PermissionError(f"data.root={root}: no permission to read {error.filename}")
        raise FileNotFoundError(f"data.root={root}: no such folder" if error.filename == str(root) else str(error))

    found = []
    for folder, inner, names in os.walk(str(root), onerror=refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(folder, name)
                found.append((path.relative_to(root).as_posix(), *_size_and_date(path)))
    if len(found) < 2:
        least = "at least two are needed, one to train on and one to hold out"
        raise ValueError(f"data.root={root}: {len(found)} files named {', '.join(SUFFIXES)} below it; {least}")
    return sorted(found)


def _size_and_date(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:  # a dangling link: an image like any other that cannot be read
        return -1, -1
    return status.st_size, status.st_mtime_ns


def divided(names: list[str], share: float) -> tuple[list[str], list[str]]:
    """(training, held out): held out is whose name's hash, as a number in [0, 1), lies below `share`."""
    digests = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=6).digest() for name in names]
    place = {name: int.from_bytes(digest) for name, digest in zip(names, digests, strict=True)}
    held_out = {name for name in names if place[name] < share * 2**48}
    held_out |= {min(names, key=place.get)}
    held_out -= {max(names, key=place.get)}
    return [name for name in names if name not in held_out], [name for name in names if name in held_out]


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
