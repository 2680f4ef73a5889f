"""The order of images as a function of (seed, images seen), and what the network receives."""

import inspect
from functools import partial
from itertools import chain, islice
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from anysigma.compose.targets import locate
from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.digits import Digits

ROOT = Path(__file__).parents[2]


def seen(order: Order) -> list[int]:
    return list(chain.from_iterable(order))


def test_every_epoch_shows_each_image_once_in_another_order():
    stream = seen(Order(n=10, batch_size=4, seed=0, total=5))
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


@pytest.mark.parametrize("start", range(9))
def test_a_resumed_order_goes_on_where_it_was_cut(start):
    whole = list(Order(n=7, batch_size=3, seed=1, total=9))
    assert list(Order(n=7, batch_size=3, seed=1, total=9, start=start)) == whole[start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_what_one_process_of_the_whole_batch_sees(world):
    one = seen(Order(n=11, batch_size=6 * world, seed=2, total=4))
    ranks = [list(Order(n=11, batch_size=6, seed=2, total=4, rank=r, world=world)) for r in range(world)]
    assert [k for batches in zip(*ranks, strict=True) for batch in batches for k in batch] == one


def test_the_seed_decides_the_order_and_the_global_generator_does_not():
    torch.manual_seed(1)
    first = seen(Order(50, 10, seed=0, total=3))
    torch.manual_seed(2)
    assert seen(Order(50, 10, seed=0, total=3)) == first != seen(Order(50, 10, seed=1, total=3))


def test_a_batch_larger_than_the_data_wraps_around():
    assert sorted(seen(Order(n=3, batch_size=6, seed=0, total=1))) == [0, 0, 1, 1, 2, 2]


def test_the_length_is_the_whole_run_wherever_it_starts():
    assert len(Order(5, 2, 0, total=8, start=6)) == 8


def test_digits_are_the_real_scans_split_without_overlap():
    digits = Digits()
    assert digits.train.shape == (1437, 1, 8, 8) and digits.held_out.shape == (360, 1, 8, 8)
    assert digits.train.dtype == torch.uint8
    assert len(torch.cat([digits.train, digits.held_out]).unique()) == digits.grey_levels == 17
    assert digits.train.min() == 0 and digits.train.max() == 255
    assert torch.bincount(digits.labels, minlength=10).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_digits_order_is_pinned():
    assert Digits().labels[:8].tolist() == PINNED


PINNED = [2, 8, 2, 6, 6, 7, 1, 9]


def test_batches_become_floats_in_range_on_the_device():
    data = ImageDataModule(Digits, (1, 8, 8), batch_size=4, seed=0)
    data.setup()
    batch = data.on_after_batch_transfer(torch.tensor([3, 1]), 0)
    assert batch.dtype == torch.float32 and batch.min() >= -1 and batch.max() <= 1
    assert torch.equal(((batch + 1) * 127.5).round().to(torch.uint8), data.train[[3, 1]])


def test_a_shape_the_data_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"data.shape=\[3, 8, 8\]"):
        ImageDataModule(Digits, (3, 8, 8), batch_size=4, seed=0).setup()


def test_the_hash_sees_every_pixel():
    class Changed(Digits):
        @property
        def held_out(self):
            images = super().held_out.clone()
            images[-1, 0, -1, -1] ^= 1
            return images

    hashes = [ImageDataModule(source, (1, 8, 8), 4, 0).hash for source in (Digits, Digits, Changed)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_islice_of_an_endless_run_is_cheap():
    assert len(list(islice(Order(10**6, 8, 0, total=10**9), 2))) == 2


def test_without_flips_the_order_is_what_it_always_was():
    assert list(Order(n=10, batch_size=4, seed=0, total=3)) == [[5, 1, 7, 9], [3, 8, 2, 4], [0, 6, 3, 0]]


def test_flips_mirror_half_of_the_images_anew_in_every_epoch_and_leave_the_order():
    plain = torch.tensor(seen(Order(n=1000, batch_size=100, seed=0, total=40)))
    flipped = torch.tensor(seen(Order(n=1000, batch_size=100, seed=0, total=40, flips=True)))
    assert torch.equal(flipped % 1000, plain)
    bits = torch.stack([torch.zeros(1000).scatter(0, e % 1000, (e >= 1000).float()) for e in flipped.split(1000)])
    assert (bits.mean(1) - 0.5).abs().max() < 0.06  # image by image, four epochs of 1,000 fair coins
    assert torch.corrcoef(bits).fill_diagonal_(0).abs().max() < 0.12


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("start", [0, 1, 4])
def test_flips_are_the_same_after_a_resume_and_in_several_processes(start, world):
    one = seen(Order(n=7, batch_size=6, seed=3, total=6, flips=True))
    ranks = [Order(7, 6 // world, 3, total=6, start=start, rank=r, world=world, flips=True) for r in range(world)]
    assert [k for batches in zip(*ranks, strict=True) for batch in batches for k in batch] == one[6 * start :]


def test_a_flipped_entry_is_the_mirrored_image_and_the_data_stay_as_they_are():
    data = ImageDataModule(Digits, (1, 8, 8), batch_size=4, seed=0, flips=True)
    n, before = len(data.train), data.train.clone()
    batch = data.on_after_batch_transfer(torch.tensor([5, n + 5, 0, n]), 0)
    assert torch.equal(batch[1], batch[0].flip(2)) and torch.equal(batch[3], batch[2].flip(2))
    assert not torch.equal(batch[0], batch[1])
    assert torch.equal(((batch[[0, 2]] + 1) * 127.5).round().to(torch.uint8), before[[5, 0]])
    assert torch.equal(data.train, before) and data.hash == ImageDataModule(Digits, (1, 8, 8), 4, 0).hash


class Kept:
    """A data set that keeps what it was made with."""

    grey_levels = 256

    def __init__(self, root: str | None = None, download: bool = False, pad: int = 0):
        self.root, self.download, self.pad = root, download, pad


def test_a_source_is_made_with_root_and_download_where_it_takes_them():
    def source(make, **places):
        return ImageDataModule(make, (1, 8, 8), 4, 0, **places).source

    kept = source(partial(Kept, pad=2), root="here", download=True)
    assert (kept.root, kept.download, kept.pad) == ("here", True, 2)
    assert (source(Kept).root, source(Kept).download) == (None, False)
    assert isinstance(source(Digits), Digits) and source(lambda root: Kept(root), root="here").root == "here"


@pytest.mark.parametrize(
    ("make", "places", "message"),
    [
        (Digits, {"root": "/x"}, "data.root=/x: Digits takes no root"),
        (partial(Digits), {"download": True}, "data.download=True: Digits takes no download"),
        (partial(Kept, root="/x"), {"root": "/y"}, "data.source.root=/x: the place of this word is data.root"),
    ],
)
def test_root_and_download_are_refused_by_name_where_they_would_do_nothing(make, places, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ImageDataModule(make, (1, 8, 8), 4, 0, **places)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/data").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_data_yaml_has_root_and_download_exactly_where_its_data_set_has_them(path):
    """So that the words mean something wherever they are taken, and Hydra refuses them where they would not."""
    node = OmegaConf.load(path)
    takes = inspect.signature(locate(node.source._target_, "data.source")).parameters
    for name, default in (("root", None), ("download", False)):
        assert (name in node) == (name in takes) and name not in node.source and node.get(name, default) == default


@pytest.mark.parametrize("processes, micro_steps", [(1, 1), (2, 1), (4, 1), (1, 3), (4, 3), (12, 1)])
def test_the_batch_is_that_of_the_optimiser_step_and_its_shares_are_its_positions_in_turn(processes, micro_steps):
    data = ImageDataModule(Digits, (1, 8, 8), batch_size=12, seed=0)
    b, whole = data.share(processes, micro_steps), list(Order(50, 12, 0, total=4))
    assert b * processes * micro_steps == 12
    orders = [Order(50, b, 0, total=4 * micro_steps, rank=r, world=processes) for r in range(processes)]
    for k in range(4):
        micro = range(k * micro_steps, (k + 1) * micro_steps)
        assert [entry for i in micro for order in orders for entry in order.batch(i)] == whole[k]


@pytest.mark.parametrize("processes, micro_steps", [(5, 1), (1, 8), (2, 4), (24, 1)])
def test_a_batch_that_cannot_be_shared_is_refused(processes, micro_steps):
    with pytest.raises(ValueError, match=f"data.batch_size=12: .* a multiple of {processes * micro_steps} is needed"):
        ImageDataModule(Digits, (1, 8, 8), batch_size=12, seed=0).share(processes, micro_steps)
