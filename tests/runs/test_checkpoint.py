"""The file of a run: atomic, loadable without trust, refused in one line where it is not ours."""

import os
import random
import subprocess
import sys
import time

import pytest
import torch
from conftest import sealed

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.schedules.linear import Linear
from anysigma.networks.unet import UNet
from anysigma.runs import checkpoint as file
from anysigma.runs import seal


def denoiser(channels=8):
    return Denoiser(UNet((1, 8, 8), channels, (1,), 1, ()), GaussianProcess(Linear(10)), Eps())


def content(model=None):
    model = model or denoiser()
    state = {f"{name}.{k}": v for name in ("ema", "denoiser") for k, v in model.state_dict().items()}
    return {"config": {}, "format": file.FORMAT, "step": 3, "state_dict": state}


def saved(what, path):
    """As torch saves it, sealed."""
    torch.save(what, path)
    sealed(path)


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path):
    file.write(content(), tmp_path / "last.ckpt")
    assert file.read(tmp_path / "last.ckpt")["step"] == 3
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_the_one_before_stays(tmp_path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    for step in (1, 2, 3):
        file.write({**content(), "step": step}, last, previous)
    assert file.read(last)["step"] == 3 and file.read(previous)["step"] == 2
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("links", [True, False])
def test_between_the_renames_there_is_a_whole_file_under_one_of_the_names(tmp_path, monkeypatch, links):
    """Also on a file system without hard links."""
    folder, replace = tmp_path / "run", os.replace
    last, previous = folder / "checkpoints/last.ckpt", folder / "checkpoints/previous.ckpt"
    file.write({**content(), "step": 1}, last, previous)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "Operation not permitted")))
    for number in (1, 2):  # the process ends before its number-th rename of this save
        left = [number]

        def until(source, target, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", until)
        with pytest.raises(KeyboardInterrupt):
            file.write({**content(), "step": 2}, last, previous)
        assert file.read(file.newest(folder))["step"] == 1
        monkeypatch.setattr(os, "replace", replace)
        file.mend(folder)
        assert file.read(last)["step"] == 1


FULL = """
import resource, sys, torch
from pathlib import Path
from anysigma.runs import checkpoint as file
from anysigma.runs import seal
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
path = Path(sys.argv[1])
content = file.read(path)
try:
    file.write({**content, "more": torch.zeros(10**6)}, path, path.with_name("previous.ckpt"))
except OSError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_what_was_saved(tmp_path):
    path = tmp_path / "last.ckpt"
    file.write(content(), path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == "checkpoint last.ckpt: not written (File too large); what was saved before is whole: last.ckpt\n"
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


SAVES = """
import sys, torch
from pathlib import Path
from anysigma.runs import checkpoint as file
from anysigma.runs import seal
path = Path(sys.argv[1])
step = file.read(file.newest(path.parent.parent))["step"] if path.exists() else 0
while True:
    step += 1
    content = dict(config={}, format=file.FORMAT, step=step, state_dict={"x": torch.full((10**6,), step)})
    file.write(content, path, path.with_name("previous.ckpt"))
    print(step, flush=True)
"""


def killed_while_saving(folder, kills, seed=0):
    """(step that was said last, step that is found) at each of so many SIGKILLs, drawn over the length of two saves."""
    draw, path = random.Random(seed), folder / "checkpoints/last.ckpt"
    process = None
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SAVES, str(path)], stdout=subprocess.PIPE, text=True)
        start = [int(process.stdout.readline()) for _ in range(2)][-1]
        time.sleep(draw.uniform(0, 0.06))
        process.kill()
        said = max([start, *map(int, filter(str.strip, process.stdout.read().splitlines()))])
        process.wait()
        yield said, file.read(file.newest(folder))
        file.mend(folder)


def whole(folder, kills):
    for said, found in killed_while_saving(folder, kills):
        assert said <= found["step"] <= said + 1
        assert (found["state_dict"]["x"] == found["step"]).all()
    assert sorted(os.listdir(folder / "checkpoints")) == ["last.ckpt", "previous.ckpt"]


def test_a_kill_in_a_save_leaves_a_whole_file_of_the_last_step(tmp_path):
    whole(tmp_path, 5)


@pytest.mark.slow
def test_two_hundred_kills_in_a_save(tmp_path):
    whole(tmp_path, 200)


def flipped(path, at):
    """The file with one bit of byte `at` the other way."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def test_one_bit_anywhere_is_seen_and_the_one_before_is_taken(tmp_path):
    """Every byte of the archive's first kilobyte, every byte of its directory and seal, 1,000 anywhere."""
    last, previous = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/previous.ckpt"
    small = dict(config={}, format=file.FORMAT, step=1, state_dict={"x": torch.arange(2000.0)})
    file.write(small, last, previous)
    file.write({**small, "step": 2}, last, previous)
    size, good = last.stat().st_size, last.read_bytes()
    draw = random.Random(0)
    for at in [*range(1000), *range(size - 1000, size), *(draw.randrange(size) for _ in range(1000))]:
        flipped(last, at)
        wrong = seal.broken(last)
        assert wrong is not None and ("damaged" in wrong or "truncated" in wrong)
        assert file.newest(tmp_path) == previous
        last.write_bytes(good)
        os.utime(last, ns=(at, at))  # written twice within one tick of the clock
    assert file.newest(tmp_path) == last


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_named_kept_aside_and_the_one_before_goes_on(tmp_path, capsys, share):
    last, previous = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/previous.ckpt"
    file.write(content(), last, previous)
    file.write({**content(), "step": 4}, last, previous)
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    cut = last.read_bytes()
    assert file.find(str(tmp_path), "last", tmp_path) == previous
    assert "last.ckpt: truncated" in capsys.readouterr().out
    file.mend(tmp_path)
    said = capsys.readouterr().out
    assert "last.ckpt: truncated" in said and "the one before it takes its place" in said
    assert file.read(last)["step"] == 3 and (tmp_path / "checkpoints/last.damaged.ckpt").read_bytes() == cut
    file.write({**content(), "step": 5}, last, previous)
    assert file.read(previous)["step"] == 3  # not the damaged one


def test_both_damaged_is_refused_by_name(tmp_path, capsys):
    last, previous = tmp_path / "checkpoints/last.ckpt", tmp_path / "checkpoints/previous.ckpt"
    for _ in range(2):
        file.write(content(), last, previous)
    for path in (last, previous):
        flipped(path, 700)
    file.mend(tmp_path)
    assert "previous.ckpt: damaged" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"last.ckpt: damaged: its bytes are not those that were written"):
        file.read(file.newest(tmp_path))


def test_what_a_killed_save_left_is_cleared_away(tmp_path):
    file.write(content(), tmp_path / "checkpoints/last.ckpt")
    (tmp_path / "checkpoints/last.ckpt.0a1b2c3d.part").write_bytes(b"half")
    file.mend(tmp_path)
    assert os.listdir(tmp_path / "checkpoints") == ["last.ckpt"]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.unlink(), "there is no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "truncated, or no file of ours"),
        (lambda p: p.write_bytes(b""), "truncated, or no file of ours"),
        (lambda p: p.write_text("hello"), "truncated, or no file of ours"),
        (lambda p: torch.save(content(), p), "it does not end with a seal"),
        (lambda p: torch.save({**content(), "format": 2}, p), "format 2, this version reads 3"),
        (lambda p: saved({"x": 1}, p), "not written by anysigma"),
        (lambda p: saved([1, 2], p), "not written by anysigma"),
        (lambda p: saved({**content(), "format": 99}, p), "format 99, this version reads 3"),
    ],
)
def test_a_file_that_is_not_ours_is_refused_in_one_line(tmp_path, spoil, said):
    path = tmp_path / "last.ckpt"
    file.write(content(), path)
    spoil(path)
    with pytest.raises(ValueError, match=said) as refused:
        file.read(path)
    assert "\n" not in str(refused.value)


def test_a_hostile_pickle_runs_no_code(tmp_path):
    canary = tmp_path / "canary"

    class Hostile:
        def __reduce__(self):
            return (open, (str(canary), "w"))

    saved({**content(), "config": Hostile()}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="no file of ours"):
        file.read(tmp_path / "last.ckpt")
    assert not canary.exists()


def test_the_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(ValueError, match="another network than its config describes"):
        file.load_weights(denoiser(channels=16), content())
    with pytest.raises(ValueError, match=r"ema .* or raw"):
        file.load_weights(denoiser(), content(), "best")


def test_a_run_is_found_by_name_folder_and_file(tmp_path):
    path = tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt"
    file.write(content(), path)
    for name in ("a", str(tmp_path / "runs" / "a"), str(path)):
        assert file.find(name, "last", tmp_path / "runs") == path
    with pytest.raises(ValueError, match=r"holds no checkpoints/best.ckpt"):
        file.find("a", "best", tmp_path / "runs")
    with pytest.raises(ValueError, match="neither a run"):
        file.find("b", "last", tmp_path / "runs")
    with pytest.raises(ValueError, match="a URL"):
        file.find("https://example.org/x.ckpt", "last", tmp_path)
