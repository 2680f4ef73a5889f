"""The file a run leaves: written atomically, read without trust."""

import hashlib
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysigma.diffusion.denoiser import Denoiser

FORMAT = 2
SUFFIX = ".ckpt"
HOLDS = {"config": dict, "format": int, "step": int, "state_dict": dict}


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Beside the target, to the disk, then renamed: whatever happens, `path` holds a whole file, the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (where the system knows how)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, tensors on the CPU. Raises ValueError, in one line, for anything else; runs no code."""
    if not path.is_file():
        raise ValueError(f"checkpoint {path}: there is no such file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle ends in whatever its reader stumbles over
        raise ValueError(f"checkpoint {path}: truncated, or no file of ours ({type(error).__name__})") from None
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(k), kind) for k, kind in HOLDS.items()):
        raise ValueError(f"checkpoint {path}: not written by anysigma (no {', '.join(HOLDS)})")
    if isinstance(checkpoint["step"], bool) or checkpoint["step"] < 0:
        raise ValueError(f"checkpoint {path}: step={checkpoint['step']} is none")
    if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in checkpoint["state_dict"].items()):
        raise ValueError(f"checkpoint {path}: its state_dict holds more than tensors")
    if checkpoint["format"] != FORMAT:
        raise ValueError(f"checkpoint {path}: format {checkpoint['format']}, this version reads {FORMAT}")
    return checkpoint


def load_weights(denoiser: Denoiser, checkpoint: dict[str, Any], weights: str = "ema") -> Denoiser:
    """The denoiser with one of the two sets of a checkpoint, `ema` or `raw`, in evaluation mode.

    Raises ValueError where the file holds another network than its config describes.
    """
    try:
        denoiser.load_state_dict(weights_of(checkpoint, weights), strict=True)
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
            if found.is_file():
                return found
            raise ValueError(f"{word}={name}: {path} holds no {found.relative_to(path)}")
    raise ValueError(f"{word}={name}: neither a run below {runs}, nor a folder, nor a file")
