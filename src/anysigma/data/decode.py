"""One image file as an array of the wanted shape."""

import errno
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from anysigma.data.patience import regular

FORMATS = ("PNG", "JPEG", "WEBP")
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ETIMEDOUT)  # says nothing of the file


def decode(path: Path, shape: Sequence[int], crop: str, background: int) -> np.ndarray:
    """The file as uint8 `[C, H, W]`, upright, its first frame; raises ValueError with a few words for what is none.

    `crop`: center or none; `background`: the grey level 0..255 under transparent pixels. Gigantic means more than
    PIL.Image.MAX_IMAGE_PIXELS. Several threads may call it at once; `quiet` is for all of them. Raises OSError where it is
    the machine that lacks memory or files to open.
    """
    C, H, W = shape
    try:
        with regular(path) as file, Image.open(not_empty(file), formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            image = converted(opaque(eight_bits(image), background), "L" if C == 1 else "RGB")
            if image.size != (W, H):
                if crop == "none":
                    raise ValueError(f"{image.height}x{image.width}, not {H}x{W}, and data.source.crop=none")
                image = ImageOps.fit(image, (W, H), Image.Resampling.BICUBIC)  # Pillow's bicubic filters when it shrinks
            return np.ascontiguousarray(np.asarray(image).reshape(H, W, C).transpose(2, 0, 1))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"gigantic, more than {Image.MAX_IMAGE_PIXELS} pixels") from error
    except MemoryError:
        raise OSError(errno.ENOMEM, "no memory to decode it", str(path)) from None
    except Exception as error:  # decoders answer damaged files with whatever they stumble over
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            raise
        raise ValueError(_words(error)) from error


def not_empty(file: BinaryIO) -> BinaryIO:
    """The file; raises ValueError where nothing is in it."""
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("empty")
    return file


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow's warning of gigantic images is not printed: `decode` refuses them. Python's filters are the process's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits, 65535 → 255; Pillow itself would cut it at 255. Everything else as it is."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def opaque(image: Image.Image, background: int) -> Image.Image:
    """Transparent pixels over a grey `background`; a palette and other colour spaces become RGB, grey stays grey."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (background,) * 3 + (255,)), image).convert("RGB")
    return image if image.mode == "L" else converted(image, "L" if image.mode == "1" else "RGB")


def converted(image: Image.Image, mode: str) -> Image.Image:
    """In this mode, without the copy that Pillow makes where it is already."""
    return image if image.mode == mode else image.convert(mode)


def _words(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a PNG, JPEG or WebP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
