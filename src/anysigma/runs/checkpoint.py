"""The file a run leaves: written atomically, read without trust."""

import hashlib
import os
import uuid
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser
from anysigma.machine.distributed import say, shown
from anysigma.runs import seal
from anysigma.runs.not_finite import hold_weights

FORMAT = 3
SUFFIX = ".ckpt"
PART = ".part"  # ends the name of what is being written
LAST, PREVIOUS, DAMAGED = f"last{SUFFIX}", f"previous{SUFFIX}", f"last.damaged{SUFFIX}"
HOLDS = {"config": dict, "format": int, "step": int, "state_dict": dict}


def write(checkpoint: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Under a name of its own, to the disk, then renamed: whatever happens, `path` holds a whole file, the old or the new.

    `previous` then names the old one. Raises OSError, in one line, where it cannot be written: the old one is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        with open(aside, "wb") as file:
            seal.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            rename_copy(path, previous)
        os.replace(aside, path)
    except OSError as error:
        kept = f"; what was saved before is whole: {shown(path)}" if path.exists() else ""
        raise OSError(f"checkpoint {shown(path)}: not written ({error.strerror or error}){kept}") from error
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def rename_copy(path: Path, other: Path) -> None:
    """The same file under another name too, in place of what has that name; both names are never without a file."""
    aside = other.with_name(f"{other.name}.{uuid.uuid4().hex[:8]}{PART}")
    try:
        os.link(path, aside)
    except OSError:  # a file system without links: for a moment `path` is gone, and `other` is there
        os.replace(path, other)
    else:
        os.replace(aside, other)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (where the system knows how)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def newest(folder: Path) -> Path:
    """A run's newest checkpoint that is whole: `last`, or `previous` where that is missing or damaged."""
    last, previous = folder / "checkpoints" / LAST, folder / "checkpoints" / PREVIOUS
    if last.is_file() and seal.broken(last) is None:
        return last
    return previous if previous.is_file() and seal.broken(previous) is None else last


def mend(folder: Path) -> None:
    """Make `previous` the `last` where that is not whole, and say so; clear away what was never written to its end.

    The damaged file keeps another name. For the one process that holds the folder.
    """
    place, found = folder / "checkpoints", newest(folder)
    for part in place.glob(f"*{PART}"):
        part.unlink(missing_ok=True)
    if found.name == PREVIOUS:
        last = place / LAST
        wrong = seal.broken(last) if last.is_file() else "there is no such file"
        if last.is_file():
            rename_copy(last, place / DAMAGED)
        rename_copy(found, last)
        say(f"checkpoint {shown(last)}: {wrong}; the one before it takes its place")
    elif found.is_file() and seal.broken(found) and (place / PREVIOUS).is_file():
        say(f"checkpoint {shown(place / PREVIOUS)}: {seal.broken(place / PREVIOUS)}, as {found.name} is")


def read(path: Path, *, sealed: bool = True) -> dict[str, Any]:
    """A checkpoint of ours, tensors on the CPU. Raises ValueError, in one line, for anything else; runs no code.

    `sealed` False: without a look at each of its bytes, to see what it says of itself.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path}: there is no such file")
    wrong = seal.broken(path) if sealed else None
    if wrong and wrong != seal.LACKING:
        raise ValueError(f"checkpoint {path}: {wrong}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=plain_zip(path))
    except Exception as error:  # a damaged pickle ends in whatever its reader stumbles over
        said = wrong or f"truncated, or no file of ours ({type(error).__name__})"
        raise ValueError(f"checkpoint {path}: {said}") from None
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(k), kind) for k, kind in HOLDS.items()):
        raise ValueError(f"checkpoint {path}: not written by anysigma (no {', '.join(HOLDS)})")
    if isinstance(checkpoint["step"], bool) or checkpoint["step"] < 0:
        raise ValueError(f"checkpoint {path}: step={checkpoint['step']} is none")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in checkpoint["state_dict"].items()):
        raise ValueError(f"checkpoint {path}: its state_dict holds more than tensors")
    if checkpoint["format"] != FORMAT:
        raise ValueError(f"checkpoint {path}: format {checkpoint['format']}, this version reads {FORMAT}")
    if wrong:  # whole, but nobody can say whether as it was written
        raise ValueError(f"checkpoint {path}: {wrong}")
    return checkpoint


def plain_zip(path: Path) -> bool:
    """Whether it is a zip archive; raises BadZipFile for a compressed one: a few bytes of it may be all of the memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise zipfile.BadZipFile
    return True


def load_weights(denoiser: Denoiser, checkpoint: dict[str, Any], weights: str = "ema") -> Denoiser:
    """The denoiser with one of the two sets of a checkpoint, `ema` or `raw`, in evaluation mode.

    Raises ValueError where the file holds another network than its config describes.
    """
    state = weights_of(checkpoint, weights)
    hold_weights(state, weights)
    try:
        denoiser.load_state_dict(state, strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(f"the checkpoint holds another network than its config describes: {first}") from None
    return denoiser.eval().requires_grad_(False)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """16 hex digits of the sha256 over all weights: what a figure's images were made by."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def weights_of(checkpoint: dict[str, Any], weights: str = "ema") -> dict[str, Tensor]:
    """One of the two sets of a checkpoint by the denoiser's own names. Raises ValueError for another word."""
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights}: ema (the moving average) or raw (as trained)")
    prefix = "ema." if weights == "ema" else "denoiser."
    return {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}


def warm_start(denoisers: Iterable[Denoiser], checkpoint: dict[str, Any]) -> None:
    """Give every denoiser the averaged weights of a checkpoint. Raises ValueError where the network is another."""
    for denoiser in denoisers:
        trained = denoiser.training, [p.requires_grad for p in denoiser.parameters()]
        load_weights(denoiser, checkpoint)
        denoiser.train(trained[0])
        for parameter, wanted in zip(denoiser.parameters(), trained[1], strict=True):
            parameter.requires_grad_(wanted)


def find(name: str, which: str, runs: Path, word: str = "checkpoint") -> Path:
    """`name`: a run below `runs`, a folder or a file; a folder means its `last` or `best`. Raises ValueError, for `word`."""
    if "://" in name:
        raise ValueError(f"{word}={name}: a URL; download the file first")
    if which not in ("last", "best"):
        raise ValueError(f"which={which}: last or best")
    for path in (Path(name), runs / name):
        if path.is_file():
            return path
        if path.is_dir():
            found = path / "checkpoints" / f"{which}{SUFFIX}"
            taken = newest(path) if which == "last" else found
            if taken != found:
                wrong = seal.broken(found) if found.is_file() else "there is no such file"
                say(f"checkpoint {shown(found)}: {wrong}; the one before it is taken, {taken.name}")
            if taken.is_file():
                return taken
            raise ValueError(f"{word}={name}: {path} holds no {found.relative_to(path)}")
    raise ValueError(f"{word}={name}: neither a run below {runs}, nor a folder, nor a file")
