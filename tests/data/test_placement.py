"""Which way images take is a function of sizes, and which images come is none of it."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from anysigma.data import datamodule
from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.images import from_uint8
from anysigma.data.placement import FROM_DISK, FROM_MEMORY, Fetched, amount, chosen, free, way
from anysigma.training.checkpoint_io import AtomicCheckpointIO

GB, N, SHAPE = 10**9, 37, (3, 4, 6)


@pytest.mark.parametrize(
    ("size", "room", "memory", "threads"),
    [
        (0, 0, 0, 0), (2 * GB, 8 * GB, 16 * GB, 0), (2 * GB + 1, 8 * GB, 16 * GB, FROM_MEMORY),
        (4 * GB, 8 * GB, 16 * GB, FROM_MEMORY), (4 * GB + 1, 8 * GB, 16 * GB, FROM_DISK), (GB, 80 * GB, 2 * GB, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_the_way_is_a_function_of_sizes(size, room, memory, device, threads):
    assert way(size, device, room, memory).threads == threads


def test_the_way_is_said_with_its_reason():
    said = [way(size * GB, "cuda", 8 * GB, 16 * GB).why for size in (1, 3, 5)]
    assert said == [
        "whole on the device (cuda)",
        "in the host's memory, more than 25% of the 8 GB of the device (cuda): 1 thread fetches ahead",
        "where they are stored, more than 25% of the 8 GB of the device (cuda) and of the host's 16 GB:"
        " 4 threads fetch ahead",
    ]
    assert way(GB, "cpu", 8 * GB, 8 * GB).why == "in memory"


def test_amounts_are_read_at_a_glance():
    sizes = (0, 999, 1000, 92_160, 999_499, 999_500, 12_288_000_000, 3e15)
    assert [amount(n) for n in sizes] == ["0 B", "999 B", "1 kB", "92.2 kB", "999 kB", "1 MB", "12.3 GB", "3e+03 TB"]


def test_this_machine_has_room():
    assert 10**8 < free(torch.device("cpu")) < 10**15


@pytest.fixture(params=["in memory", "mapped"])
def images(request, tmp_path):
    found = torch.randint(0, 256, (N, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    if request.param == "in memory":
        return found
    np.save(tmp_path / "images.npy", found.numpy())
    return torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))


class Watch(pl.LightningModule):
    """A network of one layer that keeps what it is shown, and the types of it before the device made it floats."""

    def __init__(self, channels=SHAPE[0]):
        super().__init__()
        self.layer, self.seen, self.travelled = torch.nn.Conv2d(channels, 1, 1), [], set()

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.travelled.add(batch.dtype)
        return batch

    def training_step(self, x_0, batch_idx):
        self.seen.append(x_0.clone())
        return self.layer(x_0).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


class Cut(pl.Callback):
    """Saves after so many steps and stops there."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def trainer(steps, **words):
    plain = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(max_steps=steps, max_epochs=1, accelerator="cpu", use_distributed_sampler=False, **plain, **words)


def module(images, threads, monkeypatch, flips=True, b=10):
    """A data module whose device and host have room for the images, or not: so many threads fetch ahead."""
    data = ImageDataModule(lambda: SimpleNamespace(train=images, held_out=images[:2]), images.shape[1:], b, 3, flips)
    room = {0: (GB, GB), FROM_MEMORY: (0, GB), FROM_DISK: (0, 0)}[threads]
    data.room = room[0]
    monkeypatch.setattr(datamodule, "free", lambda device: room[1])
    return data


WAYS = (0, FROM_MEMORY, FROM_DISK)


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("micro_steps", [1, 2])
def test_every_way_shows_the_same_images(images, micro_steps, flips, monkeypatch, capsys):
    shown = []
    for threads in WAYS:
        watch, data = Watch(), module(images, threads, monkeypatch, flips)
        trainer(9, accumulate_grad_batches=micro_steps).fit(watch, data)
        assert watch.travelled == {torch.uint8 if threads else torch.long}
        shown.append(torch.cat(watch.seen))
    entries = torch.tensor([k for i in range(9) for k in Order(N, 10, 3, total=9, flips=flips).batch(i)])
    expected = torch.stack([images[k % N].flip(2) if k >= N else images[k] for k in entries])
    assert all(torch.equal(found, from_uint8(expected)) for found in shown)
    said = [line for line in capsys.readouterr().out.splitlines() if "training images" in line]
    assert [line.split(" of ")[0] for line in said] == [amount(images.nbytes)] * 3 and len(set(said)) == 3


@pytest.mark.parametrize(
    "first, then", [(FROM_MEMORY, FROM_MEMORY), (FROM_DISK, FROM_DISK), (0, FROM_MEMORY), (FROM_DISK, 0)]
)
@pytest.mark.parametrize("cut", [1, 4])
def test_a_run_that_was_cut_goes_on_with_the_images_it_would_have_seen(images, cut, first, then, tmp_path, monkeypatch):
    def run(threads, callbacks=(), start=None):
        watch, fit = Watch(), trainer(7, callbacks=list(callbacks))
        fit.strategy.checkpoint_io = AtomicCheckpointIO({"config": {}}, 1)
        fit.fit(watch, module(images, threads, monkeypatch), ckpt_path=start)
        return watch.seen

    begun, resumed = run(first, [Cut(cut, tmp_path / "cut.ckpt")]), run(then, start=tmp_path / "cut.ckpt")
    assert len(begun) == cut and torch.equal(torch.cat(begun + resumed), torch.cat(run(0)))


@pytest.mark.parametrize("threads", WAYS[1:])
def test_processes_share_what_one_sees(images, threads):
    entries = partial(Order, N, seed=5, total=6, flips=True)
    one = Fetched(images, entries(batch_size=12), threads)
    ranks = [Fetched(images, entries(batch_size=4, rank=r, world=3), threads) for r in range(3)]
    for i, (batch, *parts) in enumerate(zip(one, *ranks, strict=True)):
        assert torch.equal(torch.cat(parts), batch)
        assert torch.equal(chosen(images, torch.tensor(one.order.batch(i))), batch)
    assert len(one) == i + 1 == 6


def test_images_that_do_not_lie_in_order_are_fetched_right():
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(3, 2, 5, 4).permute(1, 0, 3, 2)
    (batch,) = Fetched(images, [[1, 2, 0]], 1)
    assert torch.equal(batch, torch.stack([images[1], images[0].flip(2), images[0]]))


def used(what):
    """VmRSS or VmHWM of this process in bytes: memory now, and its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_a_million_images_of_64x64_train_on_a_device_of_8_gib(tmp_path, capfd):
    n, shape, b, steps = 10**6, (3, 64, 64), 32, 6
    mapped = np.lib.format.open_memmap(tmp_path / "train.npy", "w+", np.uint8, (n, *shape))  # holes: no disk is taken
    entries = [k for i in range(steps) for k in Order(n, b, 0, total=steps).batch(i)]
    for k in entries[::b]:
        mapped[k] = k % 251
    source = SimpleNamespace(train=torch.from_numpy(mapped), held_out=torch.zeros(1, *shape, dtype=torch.uint8))
    data, watch = ImageDataModule(lambda: source, shape, b, seed=0), Watch()
    data.room = 8 * 2**30
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = used("VmRSS")
    trainer(steps).fit(watch, data)
    assert used("VmHWM") - before < source.train.nbytes / 50
    assert watch.travelled == {torch.uint8} and "12.3 GB of training images" in capfd.readouterr().out
    first = torch.stack([batch[0] for batch in watch.seen])
    expected = torch.tensor([k % 251 for k in entries[::b]], dtype=torch.uint8)[:, None, None, None].expand(-1, *shape)
    assert torch.equal(first, from_uint8(expected))
