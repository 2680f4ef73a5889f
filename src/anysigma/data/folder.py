"""Any folder of PNG, JPEG and WebP files, decoded once into a cache that training then reads alone."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np
from rich.progress import track
from torch import Tensor

from anysigma.data.ahead import ahead
from anysigma.data.decode import decode, quiet
from anysigma.data.decoded import Damaged, Decoded, finish, opened, write_npy
from anysigma.data.patience import PATIENCE, patiently
from anysigma.machine.distributed import one_at_a_time, say
from anysigma.machine.threads import affinity

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMAT = 2  # of the cache; another number makes new ones
WAITING = 8  # decoded images of a thread that wait for a slow one before them
LISTED = 1000  # names asked for at once


class ImageFolder:
    """The images below `root`, flat or in class folders, as uint8 `[N, *shape]` in the order of their names.

    `shape` (C, H, W), C 1 or 3. `crop`: center resizes every image until it covers the shape and cuts the middle out;
    none refuses other sizes. `background`: the grey level 0..255 under transparent pixels. `held_out`: the share held
    out, by a hash of each file's name, so that a file stays on its side when others come; each side gets at least one.
    `on_error`: stop at the first file that is no whole image, or skip such files and say which. `patience`: seconds for
    which the disk may give no answer; then it is a TimeoutError, also with skip: a silent disk says nothing of an image.
    `cache`: the folder of the decoded copies; a change of any name, size, date or setting makes another, and one that is
    damaged is made again. Of several processes one decodes, on all cores.
    Raises OSError (FileNotFoundError, PermissionError, TimeoutError …) or ValueError, always in one line.
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
        patience: float = PATIENCE,
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
        if not 0 < patience < math.inf:
            raise ValueError(f"data.source.patience={patience}: seconds, more than 0")
        self.root, self.shape, self.crop, self.background = Path(root), tuple(shape), crop, background
        self.share, self.on_error, self.patience, self.cache = held_out, on_error, patience, Path(cache)

    @property
    def train(self) -> Tensor:
        """uint8 `[N, *shape]`; where it takes much memory, mapped from the cache, read page by page."""
        self.intact()
        return self._decoded_copy.train.images

    @property
    def held_out(self) -> Tensor:
        """uint8 `[M, *shape]`, likewise."""
        self.intact()
        return self._decoded_copy.held_out.images

    @property
    def hash(self) -> str:
        """Of the images as they were decoded: the cache is held to it."""
        return self._decoded_copy.hash

    def intact(self) -> None:
        """Raises OSError where a mapped cache was cut or written to while it was in use."""
        self._decoded_copy.train.intact()
        self._decoded_copy.held_out.intact()

    @cached_property
    def _decoded_copy(self) -> Decoded:
        files = listing(self.root, self.patience)
        key = (FORMAT, str(self.root.resolve()), files, self.shape, self.crop, self.background, self.share, self.on_error)
        folder = self.cache / f"folder-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
        found = self._opened(folder) or self._made_once(folder, [name for name, _, _ in files])
        if found.skipped:
            more = f" and {len(found.skipped) - 3} more" if len(found.skipped) > 3 else ""
            left_out = f"{len(found.skipped)} of {len(files)} images left out: {'; '.join(found.skipped[:3])}{more}"
            say(f"{printable(str(self.root))}: {left_out}")
        return found

    def _opened(self, folder: Path) -> Decoded | None:
        try:
            return opened(folder, self.shape, self.patience)
        except Damaged as why:
            say(f"{why}: decoded again")
            return None

    def _made_once(self, folder: Path, names: list[str]) -> Decoded:
        """The first process decodes; the others wait for it, and one of them takes over where it fails."""
        self.cache.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock")
        with one_at_a_time(lock, f"{printable(str(self.root))}: another process decodes these images, waiting for it"):
            try:
                found = opened(folder, self.shape, self.patience)
            except Damaged:
                shutil.rmtree(folder)
                found = None
            if found is None:
                self._make(folder, names)
                found = opened(folder, self.shape, self.patience)
        if found is None:
            raise OSError(f"{folder} vanished while it was made; the same command makes it again")
        return found

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
                        left = f"no image is left for {split}; the first left out: {skipped[0]}"
                        raise ValueError(f"{printable(str(self.root))}: {left}")
            finish(aside, self.shape, skipped, self.patience)
            try:
                aside.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster with the same content
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _decoded(self, names: list[str], line: str, skipped: list[str]) -> Iterator[np.ndarray]:
        threads = len(affinity())
        with closing(ahead(self._tried, names, threads, WAITING * threads, self.patience, self._named)) as found:
            for name, image in zip(names, track(found, line, total=len(names), transient=True), strict=True):
                if not isinstance(image, ValueError):
                    yield image
                elif self.on_error == "stop":
                    raise ValueError(
                        f"{self._named(name)}: {image}; data.source.on_error=skip leaves such files out"
                    ) from image
                else:
                    skipped.append(printable(f"{name} ({image})"))

    def _named(self, name: str) -> str:
        return printable(str(self.root / name))

    def _tried(self, name: str) -> np.ndarray | ValueError:
        """The image, or why there is none: what that means is decided where the images stand in order."""
        try:
            return decode(self.root / name, self.shape, self.crop, self.background)
        except ValueError as error:
            return error


def printable(text: str) -> str:
    """One line that every terminal can write: a file's name may hold line feeds and bytes that are no characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listing(root: Path, patience: float) -> list[tuple[str, int, int]]:
    """(relative name, bytes, date in ns) of every image file below `root`, by name; hidden ones do not count.

    Folders that are links are not entered. Raises TimeoutError where the disk gives no answer for `patience` seconds.
    """
    where, found = f"data.root={printable(str(root))}", _found(str(root))
    try:
        parts = patiently(iter(lambda: list(islice(found, LISTED)), []), where, patience)
        files = sorted((_relative(path, str(root)), *rest) for path, *rest in chain.from_iterable(parts))
    except PermissionError as error:
        raise PermissionError(f"{where}: no permission to read {printable(str(error.filename))}") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{where}: no such folder" if error.filename == str(root) else str(error)) from None
    if len(files) < 2:
        least = "at least two are needed, one to train on and one to hold out"
        raise ValueError(f"{where}: {len(files)} files named {', '.join(SUFFIXES)} below it; {least}")
    return files


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).replace(os.sep, "/").lstrip("/")


def _found(root: str) -> Iterator[tuple[str, int, int]]:
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    waiting += [] if entry.is_symlink() else [entry.path]
                elif entry.name.lower().endswith(SUFFIXES):
                    yield (entry.path, *_size_and_date(entry))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size_and_date(entry: os.DirEntry) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # a dangling link, or gone since: an image like any other that cannot be read
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
