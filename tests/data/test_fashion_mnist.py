"""Fashion-MNIST from its idx files: verified, padded, and one line where something is missing."""

import gzip
import hashlib
import urllib.request
from urllib.error import URLError

import numpy as np
import pytest
import torch

from anysigma.data import fashion_mnist
from anysigma.data.fashion_mnist import DEBIAN, FILES, FashionMNIST
from anysigma.metrics.features import ClassifierFeatures

real = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason=f"Debian's package dataset-fashion-mnist is not installed: no {DEBIAN}"
)


def idx(name, n=6):
    """A small file in the published format."""
    draw = np.random.default_rng(len(name))
    if "images" in name:
        header, body = [2051, n, 28, 28], draw.integers(0, 256, n * 784)
    else:
        header, body = [2049, n], draw.integers(0, 10, n)
    return np.array(header, ">i4").tobytes() + body.astype(np.uint8).tobytes()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of four small files that stand for the published ones."""
    for name in FILES:
        data = idx(name)
        (tmp_path / name).write_bytes(data)
        monkeypatch.setitem(FILES, name, (len(data), hashlib.sha256(data).hexdigest()))
    return tmp_path


def test_plain_and_packed_files_are_the_same(small):
    plain = FashionMNIST(str(small))
    assert plain.train.shape == (6, 1, 32, 32) and plain.train.dtype == torch.uint8 and plain.labels.shape == (12,)
    for name in FILES:
        (small / f"{name}.gz").write_bytes(gzip.compress((small / name).read_bytes()))
        (small / name).unlink()
    packed = FashionMNIST(str(small))
    assert torch.equal(plain.train, packed.train) and torch.equal(plain.held_out, packed.held_out)
    assert torch.equal(plain.labels, packed.labels)


def test_padding_adds_zeros_on_every_side(small):
    bare, padded = FashionMNIST(str(small), pad=0).train, FashionMNIST(str(small), pad=3).train
    assert bare.shape[2:] == (28, 28) and padded.shape[2:] == (34, 34)
    assert torch.equal(padded[..., 3:-3, 3:-3], bare) and padded.sum() == bare.sum()
    with pytest.raises(ValueError, match="pad=-1"):
        FashionMNIST(pad=-1)


def test_another_content_is_refused_by_name(small):
    path = small / "train-images-idx3-ubyte"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path} is not the published train-images-idx3-ubyte: its sha256 differs"):
        _ = FashionMNIST(str(small)).train
    assert len(FashionMNIST(str(small)).held_out) == 6


@pytest.mark.parametrize("cut", [3, 12, 60])
def test_a_cut_archive_is_refused(small, cut):
    name = "t10k-images-idx3-ubyte"
    (small / f"{name}.gz").write_bytes(gzip.compress((small / name).read_bytes())[:cut])
    (small / name).unlink()
    with pytest.raises(ValueError, match=f"{name}.gz is damaged") as caught:
        _ = FashionMNIST(str(small)).held_out
    assert "\n" not in str(caught.value)


def test_an_absent_file_names_the_package_and_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        _ = FashionMNIST(str(tmp_path)).train
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path) in said and "dataset-fashion-mnist" in said and "download=true" in said


def test_construction_touches_nothing(tmp_path):
    FashionMNIST(str(tmp_path / "nowhere"), download=True)
    assert list(tmp_path.iterdir()) == []


def answer(monkeypatch, data):
    class Response:
        headers = {"Content-Length": str(len(data))}  # noqa: RUF012

        def __init__(self):
            self.left = data

        def read(self, n):
            block, self.left = self.left[:n], self.left[n:]
            return block

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: Response())


def test_a_download_is_verified_before_it_is_there(small, tmp_path, monkeypatch):
    name = "t10k-images-idx3-ubyte"
    data, folder = (small / name).read_bytes(), tmp_path / "new"
    answer(monkeypatch, gzip.compress(data[:-1] + b"!"))
    with pytest.raises(ValueError, match="its sha256 differs"):
        _ = FashionMNIST(str(folder), download=True).held_out
    assert list(folder.iterdir()) == []
    answer(monkeypatch, gzip.compress(data))
    assert len(FashionMNIST(str(folder), download=True).held_out) == 6
    assert [path.name for path in folder.iterdir()] == [f"{name}.gz"]


def test_without_a_network_one_line_says_what_else(tmp_path, monkeypatch):
    def fails(url, timeout):
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", fails)
    with pytest.raises(ConnectionError) as caught:
        _ = FashionMNIST(str(tmp_path), download=True).train
    said = str(caught.value)
    assert "\n" not in said and "Name or service" in said and "dataset-fashion-mnist" in said and str(DEBIAN) in said
    assert list(tmp_path.iterdir()) == []


def test_without_a_root_the_package_comes_first_then_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path)
    assert FashionMNIST().folder == tmp_path
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "absent")
    assert FashionMNIST().folder == fashion_mnist.CACHE


@real
def test_the_real_files_are_the_published_set():
    data = FashionMNIST(str(DEBIAN))
    assert data.train.shape == (60_000, 1, 32, 32) and data.held_out.shape == (10_000, 1, 32, 32)
    assert torch.bincount(data.labels[:60_000]).tolist() == [6000] * 10
    assert torch.bincount(data.labels[60_000:]).tolist() == [1000] * 10
    assert data.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.train.float().mean().item() * 32**2 / 28**2 == pytest.approx(72.94, abs=0.01)  # the field's 0.2860 · 255


@real
def test_the_shipped_features_know_the_classes():
    features, data = ClassifierFeatures("fashion_mnist", (1, 32, 32)), FashionMNIST(str(DEBIAN))
    predicted = torch.cat([features.network(images).argmax(1) for images in data.held_out[:2000].split(500)])
    accuracy = (predicted == data.labels[60_000:62_000]).double().mean().item()
    assert accuracy == pytest.approx(features.facts["held_out_accuracy"], abs=0.03) and accuracy > 0.85
