"""CIFAR-10 from its published pickles: nothing in them runs, nothing but them is read."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anysigma.data import cifar10
from anysigma.data.cifar10 import ARCHIVE, CIFAR10, FOLDER, HELD_OUT, TRAIN

DATA = Path(os.environ.get("ANYSIGMA_DATA", Path(__file__).parents[3] / "shared/data"))
real = pytest.mark.skipif(not (DATA / FOLDER).is_dir(), reason=f"no {FOLDER} in {DATA}; ANYSIGMA_DATA names another place")


def content(k, n=4):
    """Images `[n, 3072]` and labels."""
    draw = np.random.default_rng(k)
    return draw.integers(0, 256, (n, 3072)).astype(np.uint8), draw.integers(0, 10, n).tolist()


def known(monkeypatch, name, data):
    """Let the data pass for the published file."""
    md5 = hashlib.md5(data).hexdigest()
    if name == ARCHIVE:
        monkeypatch.setattr(cifar10, "ARCHIVE_MD5", md5)
    else:
        monkeypatch.setitem(TRAIN if name in TRAIN else HELD_OUT, name, md5)


def archive(path, members):
    """A tar.gz of (TarInfo, bytes)."""
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A root with six small batches that stand for the published ones."""
    (tmp_path / FOLDER).mkdir()
    for k, name in enumerate([*TRAIN, *HELD_OUT]):
        data = python2(*content(k))
        (tmp_path / FOLDER / name).write_bytes(data)
        known(monkeypatch, name, data)
    return tmp_path


def python2(array, labels):
    """The very opcodes of the published files, with BINSTRING for what python 2 called str."""

    def string(data):
        return b"T" + len(data).to_bytes(4, "little") + data

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + array.shape[0].to_bytes(2, "little") + b"M" + array.shape[1].to_bytes(2, "little") + b"\x86"
    reconstructed = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    state = b"(K\x01" + shape + dtype + b"\x89" + string(array.tobytes()) + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + reconstructed + state + string(b"labels") + listed + b"u."


def test_batches_become_images_and_labels_in_order(small):
    data = CIFAR10(str(small))
    assert data.train.shape == (20, 3, 32, 32) and data.held_out.shape == (4, 3, 32, 32) and data.labels.shape == (24,)
    contents = [content(k) for k in range(6)]
    assert torch.equal(data.train[:4].flatten(1), torch.from_numpy(contents[0][0]))
    assert torch.equal(data.held_out.flatten(1), torch.from_numpy(contents[5][0]))
    assert data.labels.tolist() == [label for _, labels in contents for label in labels]


def test_another_content_is_refused_before_it_is_unpickled(small, monkeypatch):
    path = small / FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(cifar10, "ArraysOnly", None)
    with pytest.raises(ValueError, match=f"{path} is not the published file: its md5 is not"):
        cifar10.batch(path, TRAIN["data_batch_3"])


class Runs:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


HOSTILE = {
    "system": lambda path: pickle.dumps({b"data": Runs(path)}, protocol=2),
    "old": lambda path: pickle.dumps(Runs(path), protocol=0),
    "new": lambda path: pickle.dumps(Runs(path), protocol=5),
    "eval": lambda path: b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.' % bytes(path),
    "numpy": lambda path: b"cnumpy\nsave\n(S'%s'\nK\x01tR." % bytes(path),
    "dotted": lambda path: b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_code_runs_out_of_a_batch(kind, tmp_path):
    path, touched = tmp_path / "data_batch_1", tmp_path / "touched"
    path.write_bytes(HOSTILE[kind](touched))
    with pytest.raises(ValueError, match="is no batch of CIFAR-10: it asks for") as caught:
        cifar10.batch(path, hashlib.md5(path.read_bytes()).hexdigest())
    assert "\n" not in str(caught.value) and not touched.exists() and not touched.with_suffix(".npy").exists()


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02}.", b"\x80\x02].", b"\x80\x02K\x01.", b"garbage", b"\x80\x02}(U\x04dataK\x01u."]
)
def test_what_is_no_batch_is_one_line(data, tmp_path):
    path = tmp_path / "test_batch"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is no batch of CIFAR-10") as caught:
        cifar10.batch(path, hashlib.md5(data).hexdigest())
    assert "\n" not in str(caught.value)


def test_an_absent_folder_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        _ = CIFAR10(str(tmp_path)).train
    said = str(caught.value)
    assert "\n" not in said and f"no data_batch_1 in {tmp_path / FOLDER}" in said and "download=true" in said


def test_the_archive_is_enough(small, tmp_path, monkeypatch):
    before, root = CIFAR10(str(small)).train, tmp_path / "other"
    root.mkdir()
    names = [*TRAIN, *HELD_OUT, "readme.html"]
    contents = [(small / FOLDER / name).read_bytes() if name != "readme.html" else b"<html>" for name in names]
    members = [(tarfile.TarInfo(f"{FOLDER}/{name}"), data) for name, data in zip(names, contents, strict=True)]
    archive(root / ARCHIVE, members)
    with pytest.raises(ValueError, match=f"{ARCHIVE} is not the published file"):
        _ = CIFAR10(str(root)).train
    known(monkeypatch, ARCHIVE, (root / ARCHIVE).read_bytes())
    assert torch.equal(CIFAR10(str(root)).train, before)
    assert {path.name for path in (root / FOLDER).iterdir()} == {*TRAIN, *HELD_OUT}


def linked(name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../outside"), tarfile.TarInfo("/tmp/outside"), tarfile.TarInfo(f"{FOLDER}/../../outside"),
        linked(f"{FOLDER}/test_batch", tarfile.SYMTYPE), linked(f"{FOLDER}/data_batch_1", tarfile.LNKTYPE),
        linked("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type!r}",
)  # fmt: skip
def test_a_hostile_archive_writes_nothing(member, tmp_path, monkeypatch):
    archive(tmp_path / ARCHIVE, [(tarfile.TarInfo(f"{FOLDER}/data_batch_1"), b"x"), (member, b"")])
    known(monkeypatch, ARCHIVE, (tmp_path / ARCHIVE).read_bytes())
    with pytest.raises(ValueError, match="nothing is unpacked"):
        _ = CIFAR10(str(tmp_path)).train
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]


@real
def test_the_real_batches_are_the_published_set():
    data = CIFAR10(str(DATA))
    assert data.train.shape == (50_000, 3, 32, 32) and data.held_out.shape == (10_000, 3, 32, 32)
    assert torch.bincount(data.labels[:50_000]).tolist() == [5000] * 10
    assert torch.bincount(data.labels[50_000:]).tolist() == [1000] * 10
    mean = torch.stack([data.train[:, c].double().mean() for c in range(3)]) / 255
    assert [round(m, 4) for m in mean.tolist()] == [0.4914, 0.4822, 0.4465]
