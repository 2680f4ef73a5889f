"""Images/s of every way that images take to the network, and of decoding a folder against Pillow alone.

`python benchmarks/data.py [--json FILE]`: interleaved rounds, medians with quartiles, as two tables in Markdown. What is
written lies below logs/ and is deleted at the end.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from anysigma.data.datamodule import Indices, Order
from anysigma.data.folder import ImageFolder
from anysigma.data.images import from_uint8
from anysigma.data.placement import FROM_DISK, FROM_MEMORY, Fetched, chosen
from anysigma.machine.threads import affinity

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PINNED, WARM = DEVICE.type == "cuda", 5
Rates = dict[str, list[float]]


def arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default, what in (
        ("images", 60_000, "mapped images"), ("side", 64, "of a mapped image, pixels"), ("batch", 128, "images"),
        ("steps", 60, "batches in a round"), ("rounds", 11, "of reading"), ("network", 4, "matrix products in a step"),
        ("files", 2000, "PNG files"), ("file-side", 256, "of a file, pixels"), ("decodings", 5, "rounds of decoding"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default})")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    return parser.parse_args()


def main() -> None:
    """Both tables."""
    asked = arguments()
    Path("logs").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir="logs") as place:
        images = mapped(Path(place) / "images.npy", asked.images, asked.side)
        alone = reading(images, asked, network=0)
        beside = reading(images, asked, network=asked.network)
        decoded = decoding(Path(place), asked)
    here = f"{platform.processor() or platform.machine()}, {len(affinity())} cores, {DEVICE}, torch {torch.__version__}"
    print(f"{here}, Pillow {PIL.__version__}\n")
    print(f"Images of {asked.side}x{asked.side}, batch {asked.batch}, {asked.rounds} rounds\n")
    print(table(("way", "images/s, nothing else", "images/s, beside a network"), alone, beside))
    print(f"\n{asked.files} PNGs of {asked.file_side}x{asked.file_side}, {asked.decodings} rounds\n")
    print(table(("decoding", "images/s"), decoded))
    if asked.json:
        words = {name: value for name, value in vars(asked).items() if name != "json"}
        figures = {"reading": alone, "beside a network": beside, "decoding": decoded}
        asked.json.write_text(json.dumps({"here": here, "words": words, "images/s": figures}, indent=1))


def table(head: Iterable[str], *columns: Rates) -> str:
    """Markdown: median and quartiles of every name, and its share of the first one's median."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * (1 + len(columns))}"]
    for name in columns[0]:
        cells = []
        for rates in columns:
            low, middle, high = np.quantile(rates[name], (0.25, 0.5, 0.75))
            share = middle / np.median(next(iter(rates.values())))
            cells.append(f"{middle:,.0f} ({low:,.0f} to {high:,.0f}), {share:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mapped(path: Path, n: int, side: int) -> Tensor:
    """Random images in a file, uint8 `[n, 3, side, side]`."""
    array, draws = np.lib.format.open_memmap(path, "w+", np.uint8, (n, 3, side, side)), np.random.default_rng(0)
    for first in range(0, n, 1000):
        array[first : first + 1000] = draws.integers(0, 256, array[first : first + 1000].shape, np.uint8)
    array.flush()
    return torch.from_numpy(np.load(path, mmap_mode="c"))


class Gathered(Indices):
    """The images themselves, as a worker process of torch's loader sends them."""

    def __init__(self, fetched: Fetched):
        super().__init__(len(fetched.images))
        self.fetched = fetched

    def __getitems__(self, entries: list[int]) -> Tensor:
        return self.fetched.batch(entries)


def ways(images: Tensor, order: Order) -> dict[str, Callable[[], Iterable[Tensor]]]:
    """Every way as what gives float batches on the device."""
    whole, plain = images.to(DEVICE), dict(batch_sampler=order, collate_fn=lambda batch: batch)
    here = {f"{k} thread{'s' * (k > 1)} ahead": Fetched(images, order, k, PINNED) for k in (FROM_MEMORY, 2, FROM_DISK)}
    loader = DataLoader(Gathered(Fetched(images, order, 1)), num_workers=2, pin_memory=PINNED, **plain)
    at_need = Fetched(images, order, 1, PINNED)

    def sent(batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (from_uint8(batch.to(DEVICE, non_blocking=True)) for batch in batches)

    return {
        "whole on the device": lambda: (
            from_uint8(chosen(whole, batch.to(DEVICE, non_blocking=True))) for batch in DataLoader(Indices(order.n), **plain)
        ),
        "host's memory, gathered at need": lambda: sent(map(at_need.batch, order)),
        **{name: partial(sent, fetched) for name, fetched in here.items()},
        "2 worker processes of DataLoader": lambda: sent(loader),
    }


def reading(images: Tensor, asked: argparse.Namespace, network: int) -> Rates:
    """Images/s of every way; `network`: matrix products of 1024² between two batches."""
    order = Order(len(images), asked.batch, seed=0, total=WARM + asked.steps, flips=True)
    found: Rates = {}
    for _ in range(asked.rounds):
        for name, batches in ways(images, order).items():
            found.setdefault(name, []).append(asked.batch * asked.steps / seconds(batches(), network))
    return found


def seconds(batches: Iterable[Tensor], network: int) -> float:
    """What all batches but the first few take, with the work of a network after each."""
    weights, batches = torch.ones(1024, 1024, device=DEVICE), iter(batches)
    for _ in islice(batches, WARM):
        weights @ weights
    done()
    start = time.perf_counter()
    for _ in batches:
        for _ in range(network):
            weights @ weights
    done()
    return time.perf_counter() - start


def done() -> None:
    """What the device was given is computed."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def decoding(place: Path, asked: argparse.Namespace) -> Rates:
    """Images/s of the folder into its cache, and of pools that open and convert with Pillow and keep nothing."""
    root, found = place / "files", {}
    root.mkdir()
    with ProcessPoolExecutor(len(affinity())) as processes, ThreadPoolExecutor(len(affinity())) as threads:
        paths = list(processes.map(partial(png, root, asked.file_side), range(asked.files), chunksize=20))
        turns = {
            "Pillow alone, threads": partial(bare, threads, paths),
            "Pillow alone, processes": partial(bare, processes, paths),
            "data=folder, cache written": partial(ours, root, asked.file_side),
        }
        for number in range(asked.decodings):
            for name, turn in turns.items():
                start = time.perf_counter()
                turn(place / f"cache-{number}")
                found.setdefault(name, []).append(len(paths) / (time.perf_counter() - start))
    return found


def png(root: Path, side: int, k: int) -> Path:
    """A file with large shapes and a little noise, about as hard to pack as a photograph."""
    draws = np.random.default_rng(k)
    shapes = Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(shapes) + draws.normal(0, 3, (side, side, 3)).round()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"{k:06d}.png", compress_level=3)
    return root / f"{k:06d}.png"


def bare(pool: Executor, paths: list[Path], _: Path) -> None:
    """All files opened and converted."""
    for _ in pool.map(opened, paths, chunksize=20):
        pass


def opened(path: Path) -> tuple[int, int]:
    """One file opened and converted; its size is what comes back, so that processes send no images."""
    with Image.open(path) as image:
        return image.convert("RGB").size


def ours(root: Path, side: int, cache: Path) -> None:
    """All files into a new cache."""
    _ = ImageFolder(str(root), (3, side, side), cache=str(cache)).train


if __name__ == "__main__":
    main()
