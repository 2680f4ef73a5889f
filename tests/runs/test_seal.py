"""The seal: an archive in whatever pieces it comes, still one that torch and zip read."""

import hashlib
import io
import zipfile

import pytest
import torch

from anysigma.runs import seal


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (1, 2), (5, 1, 1, 7), (1000,)])
def test_all_but_the_comments_length_is_written_and_sealed(tmp_path, sizes):
    data = bytes(range(1, 200)) + b"\0\0"
    path, rest, turn = tmp_path / "x", data, 0
    with open(path, "wb") as file:
        sealing = seal.Sealing(file)
        while rest:
            n = sizes[turn % len(sizes)]
            assert sealing.write(rest[:n]) == len(rest[:n])
            rest, turn = rest[n:], turn + 1
        sealing.end()
    comment = b"sha256:" + hashlib.sha256(data[:-2]).hexdigest().encode()
    assert path.read_bytes() == data[:-2] + len(comment).to_bytes(2, "little") + comment
    assert seal.broken(path) is None


def test_a_sealed_file_is_read_by_torch_and_by_zip(tmp_path):
    content = {"x": torch.arange(10), "y": {"z": 1.5}}
    path = tmp_path / "x.ckpt"
    with open(path, "wb") as file:
        seal.save(content, file)
    assert zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip() is None
    for mmap in (True, False):
        assert torch.load(path, weights_only=True, mmap=mmap)["x"].tolist() == list(range(10))
    plain = io.BytesIO()
    torch.save(content, plain)
    assert path.stat().st_size == len(plain.getvalue()) + seal.TAIL - 2


def test_what_held_once_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "x.ckpt"
    with open(path, "wb") as file:
        seal.save({"x": 1}, file)
    assert seal.broken(path) is None
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    assert "damaged" in seal.broken(path)
    path.write_bytes(data[:60])
    assert "truncated" in seal.broken(path)
