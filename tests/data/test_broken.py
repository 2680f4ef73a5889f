"""Data broken on purpose: a line that names the file, or the policy's count, and never a hang."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
import torch
from PIL import Image

from anysigma.data import ahead as ahead_module
from anysigma.data import decoded as decoded_module
from anysigma.data import folder as folder_module
from anysigma.data import placement
from anysigma.data.ahead import ahead
from anysigma.data.cifar10 import FOLDER, TRAIN, batch, unpack
from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.decode import decode
from anysigma.data.digits import Digits
from anysigma.data.fashion_mnist import FashionMNIST
from anysigma.data.folder import ImageFolder, listing
from anysigma.data.patience import patiently, whole
from anysigma.data.placement import Fetched
from anysigma.data.rings import Rings

SHAPE = (3, 8, 8)


def image(path, seed=0, size=(8, 8, 3)):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)
    Image.fromarray(array).save(path, "PNG")
    return array


@pytest.fixture
def folder(tmp_path):
    for k in range(12):
        image(tmp_path / "images" / f"{k:02d}.png", k)
    return tmp_path / "images"


def made(root, **settings):
    return ImageFolder(str(root), SHAPE, **{"cache": str(root.parent / "cache"), **settings})


def both(source):
    return torch.cat([source.train, source.held_out])


def cached(root):
    (found,) = [path for path in (root.parent / "cache").iterdir() if path.is_dir()]
    return found


@pytest.fixture
def mapped(monkeypatch):
    """No copy is small enough to be read into memory."""
    monkeypatch.setattr(decoded_module, "WHOLE", 0)


# Work that does not end


@pytest.fixture
def never():
    """An event that nobody sets before the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_a_result_that_does_not_come_is_a_line_with_its_item_and_those_before_it_stand(never, monkeypatch):
    monkeypatch.setattr(ahead_module, "GRACE", 0.1)
    found = []
    with pytest.raises(TimeoutError, match=r"^3: no answer for 0\.2 s$"):
        found.extend(ahead(lambda k: never.wait() if k == 3 else k, range(100), 2, 4, patience=0.2))
    assert found == [0, 1, 2]


def test_who_takes_his_time_between_results_is_not_blamed(monkeypatch):
    found = []
    for k in ahead(lambda k: k, range(4), 1, 1, patience=0.05):
        time.sleep(0.1)
        found.append(k)
    assert found == [0, 1, 2, 3]


def test_time_in_which_the_process_stood_still_is_one_slice(monkeypatch):
    future, slices = Future(), []

    def stopped(futures, seconds):  # SIGSTOP for an hour, twice: the clock says so, and nothing else
        slices.append(seconds)
        if len(slices) == 3:
            future.set_result(1)

    monkeypatch.setattr(ahead_module, "wait", stopped)
    assert ahead_module._answered(future, 4.5) and slices == [1.0, 1.0, 1.0]
    slices[:] = [0.0] * 3
    assert not ahead_module._answered(Future(), 2.5) and slices[3:] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_a_thread_that_dies_is_said_in_its_place(error):
    def dies(k):
        if k == 2:
            raise error
        return k

    with pytest.raises(type(error)):
        list(ahead(dies, range(10), 3, 6))


def test_without_a_single_thread_it_is_a_line_and_with_fewer_it_goes_on(monkeypatch):
    start, allowed = threading.Thread.start, [1]

    def scarce(thread):
        if not allowed:
            raise RuntimeError("can't start new thread")
        allowed.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    assert list(ahead(lambda k: k, range(5), 4, 4)) == list(range(5))
    with pytest.raises(OSError, match="no thread can be started"):
        next(ahead(lambda k: k, range(5), 4, 4))


HANGS = """
import os, sys, threading
from anysigma.data.ahead import ahead
ahead.__globals__["GRACE"] = 0.2
try:
    list(ahead(lambda k: open(sys.argv[1]).read(), [1], 2, 2, 0.3))
except TimeoutError as error:
    print(f"error: {error}")
"""


def test_a_thread_that_hangs_does_not_keep_the_process_alive(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-c", HANGS, str(tmp_path / "pipe")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "error: 1: no answer for 0.3 s\n" and done.stderr == ""


def test_a_file_is_read_whole_or_up_to_a_limit_and_a_silent_one_is_named(tmp_path, never, monkeypatch):
    path, content = tmp_path / "file", os.urandom(100_000)
    path.write_bytes(content)
    monkeypatch.setattr("anysigma.data.patience.BLOCK", 4096)
    assert whole(path) == content and whole(path, at_most=5000) == content[:5000] and whole(path, at_most=0) == b""
    monkeypatch.setattr(ahead_module, "GRACE", 0.1)
    monkeypatch.setattr("anysigma.data.patience.regular", lambda path: never.wait())
    with pytest.raises(TimeoutError, match=f"{path}: no answer for 0.2 s"):
        whole(path, patience=0.2)


def test_items_come_as_they_are_and_errors_too():
    def items():
        yield from (None, 1, [])
        raise FileNotFoundError("gone")

    found = []
    with pytest.raises(FileNotFoundError, match="gone"):
        found.extend(patiently(items(), "x"))
    assert found == [None, 1, []]


# Files that are none, and a disk that is silent


def pipe(path):
    os.mkfifo(path)


def socketed(path):
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's name may have 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def itself(path):
    path.symlink_to(path)


NO_FILES = {
    "pipe": (pipe, "a pipe or a device, no file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device, no file"),
    "socket": (socketed, "No such device or address"),
    "link to itself": (itself, "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_named_or_counted_and_nobody_waits_for_it(kind, folder, capsys):
    make, words = NO_FILES[kind]
    make(folder / "06x.png")
    with pytest.raises(ValueError, match=f"{folder}/06x.png: {words}; data.source.on_error=skip"):
        _ = made(folder).train
    assert len(both(made(folder, on_error="skip"))) == 12
    assert f"1 of 13 images left out: 06x.png ({words})" in capsys.readouterr().out


def test_a_file_that_vanishes_after_it_was_listed_is_named_or_counted(folder, monkeypatch, capsys):
    whole_set = both(made(folder))
    monkeypatch.setattr(folder_module, "listing", lambda root, patience: [*listing(root, patience), ("zz.png", 9, 9)])
    with pytest.raises(ValueError, match=f"{folder}/zz.png: No such file"):
        _ = made(folder).train
    assert torch.equal(both(made(folder, on_error="skip")), whole_set)
    assert "1 of 13 images left out: zz.png (No such file or directory)" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_read_without_an_answer_is_named_whatever_the_policy(policy, folder, never, monkeypatch):
    def silent(path, *rest):
        return never.wait() if path.name == "07.png" else decode(path, *rest)

    monkeypatch.setattr(ahead_module, "GRACE", 0.1)
    monkeypatch.setattr(folder_module, "decode", silent)
    with pytest.raises(TimeoutError, match=f"^{folder}/07.png: no answer for 0.3 s$"):
        _ = made(folder, on_error=policy, patience=0.3).train
    assert not list((folder.parent / "cache").glob("*.part"))


def test_a_folder_that_cannot_be_listed_in_time_is_named(folder, never, monkeypatch):
    monkeypatch.setattr(ahead_module, "GRACE", 0.1)
    monkeypatch.setattr(os, "scandir", lambda path: never.wait())
    with pytest.raises(TimeoutError, match=f"^data.root={folder}: no answer for 0.2 s$"):
        _ = made(folder, patience=0.2).train


@pytest.mark.parametrize("patience", [0, -1, float("nan"), float("inf")])
def test_patience_has_an_end(patience, folder):
    with pytest.raises(ValueError, match=r"data\.source\.patience="):
        made(folder, patience=patience)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.ETIMEDOUT])
def test_what_the_machine_lacks_leaves_no_file_out(number, folder, monkeypatch):
    def lacking(path, *rest):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("anysigma.data.decode.regular", lacking)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        _ = made(folder, on_error="skip").train
    assert caught.value.errno == number and str(folder) in str(caught.value)


def test_no_memory_is_no_fault_of_the_file(folder, monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("anysigma.data.decode.opaque", full)
    with pytest.raises(OSError, match=r"no memory to decode it.*\.png"):
        _ = made(folder, on_error="skip").train


# Names and modes

NAMES = ["-rf.png", "a\nb.png", os.fsdecode(b"\xff\xfe.png"), "x" * 251 + ".png", " .png", "ö\u202e.png", "%s{}$x.png"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_are_images_like_any_other_and_make_one_line(name, folder, capsys):
    array = image(folder / "dir" / name, 99)
    assert any(np.array_equal(one, array.transpose(2, 0, 1)) for one in both(made(folder)).numpy())
    (folder / "dir" / name).write_bytes(b"x")
    with pytest.raises(ValueError) as caught:
        _ = made(folder).train
    said = str(caught.value)
    assert said.isprintable() and said.encode() and "not a PNG, JPEG or WebP image; data.source.on_error=skip" in said
    assert len(both(made(folder, on_error="skip"))) == 12
    assert capsys.readouterr().out.splitlines()[-1].encode()


def test_a_root_with_an_odd_name_makes_one_line(folder):
    odd = folder.with_name("a\nb\x1b[31m")
    folder.rename(odd)
    assert len(both(made(odd))) == 12
    (odd / "bad.png").touch()
    for source, error in ((made(odd), ValueError), (made(odd / "none"), FileNotFoundError)):
        with pytest.raises(error) as caught:
            _ = source.train
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("mode", "format"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("PA", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"),
     ("I;16", "PNG"), ("I", "PNG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("L", "JPEG"), ("RGBA", "WEBP"), ("LA", "WEBP")],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_what_the_shape_says(mode, format, channels, tmp_path):
    source = Image.new("L", (8, 8), 0)
    source.paste(200, (4, 0, 8, 8))
    if mode.startswith("I"):
        made_of = Image.fromarray((np.asarray(source).astype(np.int32) * 257).astype(np.uint16))
    else:
        made_of = source.convert("RGB").convert("RGBA").convert(mode) if mode == "PA" else source.convert(mode, dither=0)
    path = tmp_path / "image"
    try:
        made_of.save(path, format, **({"lossless": True} if format == "WEBP" else {}))
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {mode} as {format}")
    found = decode(path, (channels, 8, 8), "none", 255)
    bright = 255 if mode == "1" else 200
    assert found.shape == (channels, 8, 8) and found.dtype == np.uint8
    assert np.abs(found[:, :, :2].astype(int)).max() <= 12 and np.abs(found[:, :, 6:].astype(int) - bright).max() <= 12


# The cache


@pytest.mark.parametrize("name", ["train.npy", "held_out.npy", "made.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "longer", "folder"])
def test_a_damaged_cache_is_said_and_made_again(name, damage, folder, capsys):
    before = both(made(folder)).clone()
    path = cached(folder) / name
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "gone":
        path.write_bytes({"cut": data[:-1], "empty": b"", "longer": data + b"}"}[damage])
    assert torch.equal(both(made(folder)), before)
    (said,) = capsys.readouterr().out.strip().splitlines()
    assert said.startswith(f"{cached(folder)} is damaged (") and said.endswith("): decoded again")
    assert torch.equal(both(made(folder)), before) and capsys.readouterr().out == ""


def test_a_header_with_any_byte_changed_never_gives_other_images(folder):
    before = both(made(folder)).clone()
    path = cached(folder) / "train.npy"
    data = path.read_bytes()
    for at in range(data.index(b"\n")):
        cut = path.parent.with_name("try")
        shutil.copytree(path.parent, cut)
        (cut / "train.npy").write_bytes(data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1 :])
        try:
            found = decoded_module.opened(cut, SHAPE, 60)
        except decoded_module.Damaged as why:
            assert "\n" not in str(why)
        else:
            assert torch.equal(torch.cat([found.train.images, found.held_out.images]), before)
        shutil.rmtree(cut)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_a_changed_pixel_in_the_cache_is_found_before_anything_is_made_of_it(split, folder):
    data = ImageDataModule(lambda: made(folder), SHAPE, 4, 0)
    assert data.hash == made(folder).hash
    path = cached(folder) / f"{split}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="the images were changed since they were decoded"):
        ImageDataModule(lambda: made(folder), SHAPE, 4, 0).hold_to(data.hash)


def test_what_is_in_memory_stands_whatever_becomes_of_the_cache(folder):
    source = made(folder)
    before = both(source).clone()
    os.truncate(cached(folder) / "train.npy", 10)
    assert torch.equal(both(source), before)
    shutil.rmtree(folder.parent / "cache")
    assert torch.equal(both(source), before)


def test_a_mapped_cache_that_vanishes_is_read_on(folder, mapped):
    source = made(folder)
    before = both(source).clone()
    shutil.rmtree(folder.parent / "cache")
    assert torch.equal(both(source), before) and torch.equal(both(source), both(made(folder)))


CUT = """
import os, sys
from anysigma.data import decoded
from anysigma.data.datamodule import ImageDataModule, Order
from anysigma.data.folder import ImageFolder
from anysigma.data.placement import Fetched

decoded.WHOLE = 0
source = ImageFolder(sys.argv[1], (3, 8, 8), cache=sys.argv[2])
data = ImageDataModule(lambda: source, (3, 8, 8), 4, 0)
path = source._decoded_copy.train.path
fetched = iter(Fetched(data.train, Order(len(data.train), 4, 0, total=10**6), int(sys.argv[3]), intact=data.intact))
for i, batch in enumerate(fetched):
    if i == 3:
        os.truncate(path, 100)
"""


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_mapped_cache_that_is_cut_while_training_ends_in_a_line_and_not_in_sigbus(threads, folder):
    command = [sys.executable, "-c", CUT, str(folder), str(folder.parent / "cache"), threads]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("OSError: ") and "was changed while it was in use; remove" in last


def test_every_use_of_a_mapped_cache_asks_whether_it_is_what_it_was(folder, mapped):
    source = made(folder)
    data = ImageDataModule(lambda: source, SHAPE, 4, 0)
    data.on_after_batch_transfer(torch.tensor([0]), 0)
    with (cached(folder) / "train.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"x")
    uses = [
        lambda: source.train, lambda: source.held_out, lambda: data.on_after_batch_transfer(torch.tensor([0]), 0),
        lambda: next(iter(Fetched(torch.zeros(4, *SHAPE), Order(4, 2, 0, total=9), 1, intact=data.intact))),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(OSError, match=r"train\.npy was changed while it was in use"):
            use()


def test_a_batch_that_does_not_come_is_a_line(never, monkeypatch):
    monkeypatch.setattr(ahead_module, "GRACE", 0.1)
    monkeypatch.setattr(placement, "PATIENCE", 0.2)
    fetched = Fetched(torch.zeros(4, *SHAPE), Order(4, 2, 0, total=9), 2, intact=never.wait)
    with pytest.raises(TimeoutError, match=r"^a batch of images: no answer for 0\.2 s$"):
        next(iter(fetched))


# The published sets, and the hash of each


@pytest.mark.parametrize("source", [lambda: Rings(10**9), lambda: Rings(2, float("inf")), lambda: FashionMNIST(pad=10**6)])
def test_what_would_take_all_memory_is_refused(source):
    with pytest.raises(ValueError, match="at most"):
        source()


def test_a_cut_file_of_cifar10_is_one_line(tmp_path):
    for size in (0, 1, 1000):
        (tmp_path / "data_batch_1").write_bytes(b"x" * size)
        with pytest.raises(ValueError, match="is not the published file: its md5 is not") as caught:
            batch(tmp_path / "data_batch_1", TRAIN["data_batch_1"])
        assert "\n" not in str(caught.value)
        with pytest.raises(ValueError, match="is not the published file"):
            unpack(tmp_path / "data_batch_1", tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_a_pipe_in_the_place_of_a_published_file_holds_nobody_up(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        _ = FashionMNIST(str(tmp_path)).train


def test_digits_that_cannot_be_read_are_one_line(monkeypatch):
    def damaged():
        raise EOFError("Compressed file ended\nbefore the end-of-stream marker")

    monkeypatch.setattr("sklearn.datasets.load_digits", damaged)
    with pytest.raises(ValueError, match=r"scikit-learn's digits cannot be read \(EOFError\): install it anew$"):
        _ = Digits().train


class Published:
    """Stands for a published set: six images, one held out."""

    grey_levels = 256

    def __init__(self):
        images = torch.randint(0, 256, (6, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        self.train, self.held_out = images[:5], images[5:]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", ["digits", "rings", "folder", "published"])
def test_every_data_set_is_held_to_its_hash_by_a_single_pixel(kind, split, folder):
    makers = {"digits": Digits, "rings": Rings, "folder": lambda: made(folder), "published": Published}
    source = makers[kind]()
    data = ImageDataModule(lambda: source, tuple(source.train.shape[1:]), 4, 0)
    known = data.hash
    data.hold_to(known)
    images = {"train": source.train.clone(), "held_out": source.held_out.clone()}
    images[split][-1, 0, -1, -1] ^= 1
    other = ImageDataModule(lambda: type("Other", (), images)(), data.shape, 4, 0)
    with pytest.raises(ValueError, match="the images are not those of the run") as caught:
        other.hold_to(known)
    assert known in str(caught.value) and "\n" not in str(caught.value)


def test_a_made_json_that_says_something_else_is_damaged(folder):
    _ = made(folder).train
    for content in ("[]", "{}", '{"skipped": 3, "hash": 1}', json.dumps({"skipped": []}), "\x00", "[" * 5000):
        (cached(folder) / "made.json").write_text(content)
        with pytest.raises(decoded_module.Damaged):
            decoded_module.opened(cached(folder), SHAPE, 60)
