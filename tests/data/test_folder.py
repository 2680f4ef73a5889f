"""A folder of images: every form a file can have, every way it can be broken, and a cache that stands alone."""

import os
import shutil
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from anysigma.data import folder as folder_module
from anysigma.data.datamodule import ImageDataModule
from anysigma.data.decode import decode
from anysigma.data.folder import ImageFolder, divided


def noise(*shape, seed=0, levels=256):
    return np.random.default_rng(seed).integers(0, levels, shape).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def made(root, shape=(3, 8, 8), **settings):
    return ImageFolder(str(root), shape, **{"cache": str(root.parent / "cache"), **settings})


@pytest.fixture
def folder(tmp_path):
    """Twenty images in class folders and flat."""
    root = tmp_path / "images"
    for k in range(20):
        save(root / ["", "cats", "dogs/small"][k % 3] / f"{k}.{['png', 'PNG'][k % 2]}", noise(8, 8, 3, seed=k))
    return root


def test_images_come_by_name_and_are_divided_by_it(folder):
    source = made(folder, held_out=0.3)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    train, held_out = divided(names, 0.3)
    assert len(train) + len(held_out) == 20 and set(train).isdisjoint(held_out) and 2 <= len(held_out) <= 11
    for split, members in ((source.train, train), (source.held_out, held_out)):
        expected = np.stack([np.asarray(Image.open(folder / name)).transpose(2, 0, 1) for name in members])
        assert split.dtype == torch.uint8 and np.array_equal(split.numpy(), expected)


def test_a_file_stays_on_its_side_when_others_come():
    names = [f"{k}.png" for k in range(2000)]
    some, more = divided(names[:1000], 0.1), divided(names, 0.1)
    assert set(some[0]) <= set(more[0]) and set(some[1]) <= set(more[1]) and 150 < len(more[1]) < 250


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_side_gets_at_least_one(share):
    assert all(len(side) >= 1 for side in divided(["a.png", "b.png"], share))


def test_it_is_the_source_of_batches(folder):
    data = ImageDataModule(lambda: made(folder), (3, 8, 8), batch_size=2, seed=0, flips=True)
    data.setup()
    batch = data.on_after_batch_transfer(torch.tensor([0, len(data.train)]), 0)
    assert batch.dtype == torch.float32 and torch.equal(batch[1], batch[0].flip(2))
    assert data.hash == ImageDataModule(lambda: made(folder), (3, 8, 8), 2, 0).hash


def one(path, shape=(3, 4, 4), crop="center", background=255):
    return decode(path, shape, crop, background)


def test_grey_and_colour_become_what_the_shape_says(tmp_path):
    grey, colour = noise(4, 4), noise(4, 4, 3)
    path = save(tmp_path / "grey.png", grey)
    assert np.array_equal(one(path, (1, 4, 4)), grey[None]) and np.array_equal(one(path), np.stack([grey] * 3))
    luma = np.round(colour @ [0.299, 0.587, 0.114])
    assert np.abs(one(save(tmp_path / "colour.png", colour), (1, 4, 4))[0] - luma).max() <= 1


def test_palettes_bits_and_16_bits(tmp_path):
    colour = noise(4, 4, 3, levels=2) * 255
    Image.fromarray(colour).quantize(8).save(tmp_path / "p.png")
    assert np.array_equal(one(tmp_path / "p.png"), colour.transpose(2, 0, 1))
    Image.fromarray(colour[..., 0]).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(one(tmp_path / "1.png", (1, 4, 4))[0], colour[..., 0])
    deep = np.array([[0, 256], [32896, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "16.png")
    assert one(tmp_path / "16.png", (1, 2, 2)).tolist() == [[[0, 1], [128, 255]]]
    assert one(tmp_path / "16.png", (3, 2, 2))[2].tolist() == [[0, 1], [128, 255]]


@pytest.mark.parametrize("background", [0, 100, 255])
def test_transparent_pixels_show_the_background(background, tmp_path):
    clear, half = np.full((4, 4, 4), 200, np.uint8), np.full((4, 4, 4), 200, np.uint8)
    clear[..., 3], half[..., 3] = 0, 128
    assert (one(save(tmp_path / "clear.png", clear), background=background) == background).all()
    mixed = one(save(tmp_path / "half.webp", half, lossless=True), background=background)
    assert np.abs(mixed - (200 * 128 + background * 127) / 255).max() <= 1
    palette = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (one(tmp_path / "palette.png", background=background) == background).all()
    save(tmp_path / "key.png", np.full((4, 4, 3), 7, np.uint8), transparency=(7, 7, 7))
    assert (one(tmp_path / "key.png", (1, 4, 4), background=background) == background).all()


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(one(tmp_path / "cmyk.jpg")[:, 0, 0].astype(int) - [255, 0, 0]).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_stand_upright(orientation, tmp_path):
    upright = np.kron(noise(2, 3, seed=5), np.ones((16, 16), np.uint8))
    turn = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
            6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "photo.jpg", np.ascontiguousarray(turn[orientation](upright)), exif=exif, quality=100)
    assert np.abs(one(path, (1, 32, 48), crop="none")[0].astype(int) - upright).max() < 8


@pytest.mark.parametrize("form", ["png", "webp"])
def test_of_an_animation_the_first_frame_counts(form, tmp_path):
    frames = [Image.new("RGB", (4, 4), (level,) * 3) for level in (10, 200)]
    frames[0].save(tmp_path / f"a.{form}", save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(tmp_path / f"a.{form}").n_frames == 2
    assert (one(tmp_path / f"a.{form}") == 10).all()


@pytest.mark.parametrize("size", [(16, 40), (40, 16), (9, 5), (2, 3)])
def test_an_image_covers_the_shape_and_its_middle_is_cut_out(size, tmp_path):
    H, W = size
    ramp = np.tile(np.linspace(0, 255, W), (H, 1)).round().astype(np.uint8)
    path = save(tmp_path / "ramp.png", ramp)
    wide = one(path, (1, 4, 8))[0].astype(float)
    assert wide.shape == (4, 8) and np.abs(wide - wide[0]).max() <= 1  # rows are alike: nothing was squeezed or turned
    assert abs(wide.mean() - 127.5) < 2 and (np.diff(wide[0]) >= 0).all()


def test_shrinking_is_antialiased(tmp_path):
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    assert np.abs(one(save(tmp_path / "checks.png", checks.astype(np.uint8)), (1, 8, 8)).astype(int) - 127).max() < 5


def test_the_right_size_is_not_touched_and_another_can_be_refused(tmp_path):
    array = noise(4, 6, 3)
    path = save(tmp_path / "a.png", array)
    assert np.array_equal(one(path, (3, 4, 6)), array.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="4x6, not 4x4, and"):
        one(path, crop="none")


def gigantic(path):
    """A PNG whose header alone claims 60,000 x 60,000 pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b""))


def large(path):
    """More pixels than Pillow warns of, fewer than it refuses."""
    gigantic(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    path.write_bytes(data)


def cut(form):
    def write(path):
        Image.fromarray(noise(64, 64, 3)).save(path, form)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


def flipped_bits(path):
    Image.fromarray(noise(64, 64, 3)).save(path, "PNG")
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)


def postscript(path):
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


BAD = {
    "empty": (lambda path: path.touch(), "empty"),
    "text": (lambda path: path.write_text("hello"), "not a PNG, JPEG or WebP image"),
    "gif": (lambda path: Image.new("L", (4, 4)).save(path, "GIF"), "not a PNG, JPEG or WebP image"),
    "postscript": (postscript, "not a PNG, JPEG or WebP image"),
    "cut png": (cut("PNG"), ""),
    "cut jpeg": (cut("JPEG"), "image file is truncated"),
    "cut webp": (cut("WEBP"), ""),
    "header only": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), ""),
    "flipped bits": (flipped_bits, ""),
    "gigantic": (gigantic, "gigantic, more than"),
    "large": (large, "gigantic, more than"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "folder": (lambda path: path.symlink_to("."), "directory"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_or_counted_in_one_line(kind, folder, capsys):
    write, words = BAD[kind]
    whole = made(folder)
    before = torch.cat([whole.train, whole.held_out])
    bad = folder / "cats" / "bad.png"
    write(bad)
    if kind == "folder":
        assert len(torch.cat([made(folder).train, made(folder).held_out])) == 20  # no file, though it is named like one
        return
    with pytest.raises(ValueError) as caught:
        _ = made(folder).train
    said = str(caught.value)
    assert said.startswith(f"{bad}: ") and words in said and "on_error=skip" in said and "\n" not in said
    source = made(folder, on_error="skip")
    assert len(source.train) + len(source.held_out) == len(before)
    lines = capsys.readouterr().out.strip().splitlines()
    assert f"1 of 21 images left out: cats/bad.png ({words}" in lines[-1]
    assert not list((folder.parent / "cache").glob("*.part")) and not ImageFile.LOAD_TRUNCATED_IMAGES


def spoiled(folder):
    """Files that are no images, first, last and between."""
    for name in ("00.png", "cats/1b.png", "zz.png"):
        (folder / name).write_text(name)
    large(folder / "dogs" / "large.png")


@pytest.mark.parametrize("threads", [2, 5])
def test_any_number_of_threads_makes_the_same_bytes_lines_and_progress(threads, folder, monkeypatch, capsys):
    spoiled(folder)
    track, shown = folder_module.track, []

    def tracked(images, line, total, transient):
        shown.append((line, total, transient))
        return track(images, line, total=total, transient=transient)

    def bytes_lines_and_progress(count):
        monkeypatch.setattr(folder_module, "affinity", lambda: range(count))
        cache = folder.parent / f"cache{count}"
        _ = made(folder, cache=str(cache), on_error="skip", held_out=0.4).train
        (place,) = caches(cache)
        return {path.name: path.read_bytes() for path in place.iterdir()}, capsys.readouterr().out, shown[-2:]

    monkeypatch.setattr(folder_module, "track", tracked)
    one, several = bytes_lines_and_progress(1), bytes_lines_and_progress(threads)
    assert one == several and "4 of 24 images left out: 00.png (" in one[1]
    (first, n, _), (second, m, _) = shown[:2]
    assert (first, second, n + m, len(shown)) == ("images: train", "images: held_out", 24, 4)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_first_bad_image_by_name_is_said_whichever_is_found_first(threads, folder, monkeypatch):
    spoiled(folder)

    def late(path, *rest):
        if path.name == first:
            time.sleep(0.1)
        return decode(path, *rest)

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))
    bad = [name for name in divided(names, 0.1)[0] if name in ("00.png", "cats/1b.png", "dogs/large.png", "zz.png")]
    first = bad[0].split("/")[-1]
    monkeypatch.setattr(folder_module, "affinity", lambda: range(threads))
    monkeypatch.setattr(folder_module, "decode", late)
    with pytest.raises(ValueError, match=f"/{bad[0]}: "):
        _ = made(folder).train
    assert caches(folder.parent / "cache") == [] and not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_what_a_killed_process_left_goes_when_another_decodes(folder):
    _ = made(folder).train
    cache = folder.parent / "cache"
    (place,) = caches(cache)
    left, others = cache / f"{place.name}.7.part", cache / "folder-0123456789abcdef.7.part"
    for one in (left, others):
        one.mkdir()
        (one / "train.npy").write_bytes(bytes(100))
    place.rename(cache / "gone")
    assert len(made(folder).train) and place.is_dir() and not left.exists() and others.exists()


def test_threads_leave_the_warnings_as_they_were(folder, monkeypatch, recwarn):
    for k in range(8):
        large(folder / f"large{k}.png")
    before = list(warnings.filters)
    monkeypatch.setattr(folder_module, "affinity", lambda: range(4))
    assert len(torch.cat([made(folder, on_error="skip").train, made(folder, on_error="skip").held_out])) == 20
    assert warnings.filters == before and not [w for w in recwarn if "DecompressionBomb" in w.category.__name__]


def test_strange_names_make_one_line(folder, capsys):
    (folder / "a\nb.png").touch()
    (folder / os.fsdecode(b"\xff.png")).touch()
    (folder / "._hidden.png").touch()
    source = made(folder, on_error="skip")
    assert len(source.train) + len(source.held_out) == 20
    [line] = capsys.readouterr().out.strip().splitlines()[-1:]
    assert "2 of 22" in line and "a\\nb.png" in line and line.encode()


def test_files_may_vanish_once_they_are_cached(folder):
    source = made(folder)
    before = source.train.clone()
    shutil.rmtree(folder)
    assert torch.equal(source.train, before) and len(source.held_out) >= 1


def caches(place):
    """What lies there but for locks, which stay: an empty file holds nobody."""
    return [path for path in place.iterdir() if path.suffix != ".lock"]


def test_the_cache_is_found_again_and_every_change_makes_another(folder, monkeypatch):
    first, cache = made(folder), folder.parent / "cache"
    _ = first.train
    with monkeypatch.context() as patched:
        patched.setattr("anysigma.data.folder.decode", None)
        again = made(folder)
        assert torch.equal(again.train, first.train) and torch.equal(again.held_out, first.held_out)
    assert {path.name for path in caches(cache)[0].iterdir()} == {"train.npy", "held_out.npy", "made.json"}
    others = [{"shape": (1, 8, 8)}, {"background": 0}, {"held_out": 0.5}, {"crop": "none"}, {"on_error": "skip"}]
    for other in others:
        _ = made(folder, **other).train
    os.utime(folder / "0.png", ns=(0, 0))
    _ = made(folder).train
    save(folder / "new.png", noise(8, 8, 3))
    assert len(made(folder).train) + len(made(folder).held_out) == 21
    assert len(caches(cache)) == 1 + len(others) + 2


def test_what_writes_into_the_images_does_not_reach_the_cache(folder):
    source = made(folder)
    source.train.zero_()
    assert made(folder).train.any()


def test_a_full_disk_leaves_no_cache_behind(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anysigma.data.folder.write_npy", full)
    with pytest.raises(OSError, match="No space left"):
        _ = made(folder).train
    assert caches(folder.parent / "cache") == []


def test_another_process_may_be_faster(folder, monkeypatch):
    from anysigma.data import folder as module

    whole = made(folder)
    original = module.write_npy

    def overtaken(*arguments):
        monkeypatch.setattr(module, "write_npy", original)
        _ = made(folder, cache=str(folder.parent / "other")).train
        (folder.parent / "cache").mkdir(exist_ok=True)
        shutil.copytree(caches(folder.parent / "other")[0], folder.parent / "cache" / FOUND[0])
        return original(*arguments)

    FOUND = []
    make = ImageFolder._make
    monkeypatch.setattr(
        ImageFolder, "_make", lambda self, path, names: (FOUND.append(path.name), make(self, path, names))[1]
    )
    monkeypatch.setattr(module, "write_npy", overtaken)
    assert len(whole.train) + len(whole.held_out) == 20
    assert [path.name for path in caches(folder.parent / "cache")] == FOUND[:1]


def test_missing_empty_and_single(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        _ = made(tmp_path / "missing").train
    for files in ([], ["notes.txt"], ["one.png"]):
        root = tmp_path / f"with{len(files)}"
        root.mkdir(exist_ok=True)
        for name in files:
            (root / name).touch()
        with pytest.raises(ValueError, match="at least two are needed") as caught:
            _ = made(root).train
        assert "\n" not in str(caught.value)
    (tmp_path / "file.png").touch()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        _ = made(tmp_path / "file.png").train


def test_all_bad_is_one_line(tmp_path):
    for k in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{k}.png").touch()
    with pytest.raises(ValueError, match=r"no image is left for train; the first left out: \d.png \(empty\)"):
        _ = made(tmp_path / "images", on_error="skip").train


@pytest.mark.parametrize("inner", [False, True])
def test_no_permission_is_one_line(folder, inner, monkeypatch):
    closed = str(folder / "dogs" if inner else folder)
    scandir = os.scandir

    def refused(path):
        if str(path) == closed:
            raise PermissionError(13, "Permission denied", closed)  # root, who runs tests in containers, may read all
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError) as caught:
        _ = made(folder).train
    assert str(caught.value) == f"data.root={folder}: no permission to read {closed}"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shape": (2, 8, 8)}, r"data.shape=\[2, 8, 8\]"), ({"shape": (8, 8)}, "C, H, W"), ({"crop": "left"}, "crop=left"),
        ({"on_error": "ignore"}, "on_error=ignore"), ({"background": 256}, "background=256"),
        ({"held_out": 0.0}, "held_out=0"), ({"held_out": 1.0}, "held_out=1"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        made(tmp_path, **settings)


def test_no_root_is_one_line():
    with pytest.raises(FileNotFoundError, match="no folder is named"):
        ImageFolder(None, (3, 8, 8))
