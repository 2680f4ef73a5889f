"""Images as batches: uint8 until the device, [-1, 1] after it, in an order that is a function of (seed, images seen)."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from anysigma.data.images import from_uint8, image_hash
from anysigma.data.placement import Fetched, Way, amount, chosen, free, way
from anysigma.diffusion.noise import Draws, stream
from anysigma.machine.distributed import say


class ImageSource(Protocol):
    """A data set: two uint8 tensors `[N, C, H, W]`.

    It may have a `hash`, that of the images as they ought to be, and `intact()`, which raises OSError where what they are
    mapped from is not what it was.
    """

    grey_levels: int

    @property
    def train(self) -> Tensor: ...

    @property
    def held_out(self) -> Tensor: ...


class Order:
    """A batch sampler without state: batch i of rank r holds the b positions from (i·W + r)·b on of an endless stream.

    Position p of the stream is entry p % N of the p // N-th permutation, which is a function of (seed, p // N).
    So a resumed run sees what the uninterrupted one would have seen, and optimiser step k takes the positions k·B …
    (k+1)·B - 1 whatever number of processes and micro-steps share the whole batch B. `batch_size`: b, the share of one
    process and micro-step. `total` batches make the run; iteration starts at batch `start`. With `flips`, entry k stands
    as k + N where the image is to be mirrored: a fair coin for every position, a function of (seed, p) too. `taken`: which
    batch of the stream comes as the i-th, where some are skipped.
    """

    def __init__(
        self, n: int, batch_size: int, seed: int, total: int,
        start: int = 0, rank: int = 0, world: int = 1, flips: bool = False, taken: Callable[[int], int] = int,
    ):  # fmt: skip
        self.n, self.batch_size, self.seed, self.flips = n, batch_size, seed, flips
        self.total, self.start, self.rank, self.world, self.taken = total, start, rank, world, taken
        self._permutation = lru_cache(2)(self._drawn)
        self._coins = Draws(seed, "flips")  # of their own: the order is the same with flips and without

    def _drawn(self, epoch: int) -> Tensor:
        return torch.randperm(self.n, generator=stream(self.seed, epoch))

    def batch(self, i: int) -> list[int]:
        """Entries of batch i of this rank: 0..N-1, with flips 0..2N-1."""
        first = (i * self.world + self.rank) * self.batch_size
        end = first + self.batch_size
        starts = range(first - first % self.n, end, self.n)  # of the permutations that the batch takes a piece of
        entries = torch.cat([self._permutation(p // self.n)[max(first - p, 0) : end - p] for p in starts])
        if self.flips:
            entries += self.n * (self._coins.uniform(torch.arange(first, end)) < 0.5)
        return entries.tolist()

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.batch, map(self.taken, range(self.start, self.total)))

    def __len__(self) -> int:
        return self.total


class Indices(torch.utils.data.Dataset):
    """A batch of indices is the batch: the images lie on the device."""

    def __init__(self, n: int):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.tensor(indices)


class ImageDataModule(LightningDataModule):
    """float32 batches `[B, C, H, W]` in [-1, 1] of one `ImageSource`.

    `source`: makes it, from `root` and `download` where its signature has them; ValueError where they are given and it
    has not. `shape`: (C, H, W) as the YAML declares it; the source is held to it (ValueError). `batch_size`: images an
    optimiser step, all processes and micro-steps together. `flips`: half of all training images are mirrored left to
    right, anew in every epoch; `train` and `held_out` never are. Images stay uint8 until the device: they lie there whole
    and only indices travel, or where they would fill it, batches are fetched ahead from the host (data/placement.py); the
    batches are the same. `skipped`: batches of the stream, an optimiser step's each, that no step takes; checkpoints say it.
    """

    room: int | None = None  # bytes free on the device; None: as it says itself

    def __init__(
        self, source: Callable[..., ImageSource], shape: Sequence[int], batch_size: int, seed: int, flips: bool = False,
        root: str | None = None, download: bool = False,
    ):  # fmt: skip
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size}: at least 1 image is needed")
        self.source = made(source, root=root, download=download)
        self.shape, self.batch_size, self.seed, self.flips = tuple(shape), batch_size, seed, flips
        self.skipped: list[int] = []
        self._on_device: Tensor | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load and verify."""
        for split in (self.train, self.held_out):
            if tuple(split.shape[1:]) != self.shape or split.dtype != torch.uint8:
                raise ValueError(f"data.shape={list(self.shape)}, but the images are {split.dtype} {list(split.shape[1:])}")

    @property
    def train(self) -> Tensor:
        """Training images, uint8 `[N, C, H, W]`."""
        return self.source.train

    @property
    def held_out(self) -> Tensor:
        """Held-out images, uint8 `[M, C, H, W]`."""
        return self.source.held_out

    @cached_property
    def hash(self) -> str:
        """16 hex digits of the sha256 over both splits. Raises ValueError where the source knows another."""
        found = image_hash(self.train, self.held_out)
        if (known := getattr(self.source, "hash", found)) != found:
            raise ValueError(
                f"the images were changed since they were decoded: hash {found}, then {known}; remove the cache"
            )
        return found

    def intact(self) -> None:
        """Raises OSError where the images are mapped from a file that was changed since."""
        getattr(self.source, "intact", lambda: None)()

    def hold_to(self, hash: str | None) -> None:
        """Raises ValueError where the images are not those of a hash; None holds to nothing."""
        if hash is not None and hash != self.hash:
            n, m = len(self.train), len(self.held_out)
            raise ValueError(
                f"the images are not those of the run: {n} to train on and {m} held out have the hash {self.hash},"
                f" the run's have {hash}; data.root=FOLDER names another place"
            )

    def share(self, processes: int, micro_steps: int) -> int:
        """Images of one process and micro-step: batch_size over their number; ValueError where that leaves a rest."""
        share, rest = divmod(self.batch_size, processes * micro_steps)
        if rest:
            raise ValueError(
                f"data.batch_size={self.batch_size}: the images of an optimiser step are shared by {processes} (processes)"
                f" × {micro_steps} (trainer.accumulate_grad_batches): a multiple of {processes * micro_steps} is needed"
            )
        return share

    def taken(self, i: int) -> int:
        """The micro-step of the stream that micro-step i of the training takes: i, but for what is skipped before it."""
        k, rest = divmod(i, self.trainer.accumulate_grad_batches)
        return unskipped(k, self.skipped) * self.trainer.accumulate_grad_batches + rest

    def state_dict(self) -> dict[str, Any]:
        """What is skipped, where something is."""
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The same again."""
        self.skipped = list(state["skipped"])

    def train_dataloader(self) -> DataLoader | Fetched:
        """One epoch of max_steps · accumulation batches, starting after those that the trainer has already drawn.

        Says in one line which way the images take.
        """
        trainer = self.trainer
        order = Order(
            len(self.train),
            self.share(trainer.world_size, trainer.accumulate_grad_batches),
            self.seed,
            total=trainer.max_steps * trainer.accumulate_grad_batches,
            start=trainer.fit_loop.epoch_loop.batch_progress.total.ready,
            rank=trainer.global_rank,
            world=trainer.world_size,
            flips=self.flips,
            taken=self.taken,
        )
        device = trainer.strategy.root_device
        taken = self.way(device)
        say(f"{amount(self.train.nbytes)} of training images {taken.why}")
        if taken.threads:
            return Fetched(self.train, order, taken.threads, pinned=device.type == "cuda", intact=self.intact)
        return DataLoader(Indices(len(self.train)), batch_sampler=order, collate_fn=lambda batch: batch)

    def way(self, device: torch.device) -> Way:
        """How the training images come to a device, by their size."""
        room = free(device) if self.room is None else self.room
        return way(self.train.nbytes, device.type, room, free(torch.device("cpu")))

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        """Indices, or images uint8, on the device → images in [-1, 1] on the device."""
        if batch.dtype == torch.uint8:
            return from_uint8(batch)
        if self._on_device is None or self._on_device.device != batch.device:
            self._on_device = self.train.to(batch.device)
        self.intact()
        return from_uint8(chosen(self._on_device, batch) if self.flips else self._on_device.index_select(0, batch))


def unskipped(k: int, skipped: Sequence[int]) -> int:
    """The k-th, from 0, of the whole numbers from 0 on that are not skipped."""
    for one in sorted(skipped):
        k += one <= k
    return k


def made(source: Callable[..., ImageSource], **places: Any) -> ImageSource:
    """The source from those of `places` that its signature has.

    Raises ValueError for one that is given and that it has not, FileNotFoundError for one that it needs and is not given.
    """
    takes, bound = inspect.signature(source).parameters, getattr(source, "keywords", {})
    for name, value in places.items():
        if value and name not in takes:
            who = getattr(source, "func", source).__name__
            raise ValueError(f"data.{name}={value}: {who} takes no {name}, its images come from elsewhere")
        if value is None and name in takes and takes[name].default is inspect.Parameter.empty:
            raise FileNotFoundError(f"data.{name}=null: where the images lie is needed; data.{name}=PLACE names it")
        if name in bound:
            raise ValueError(f"data.source.{name}={bound[name]}: the place of this word is data.{name}")
    return source(**{name: value for name, value in places.items() if name in takes})
