"""The file of a run: atomic, loadable without trust, refused in one line where it is not ours."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.schedules.linear import Linear
from anysigma.networks.unet import UNet
from anysigma.runs import checkpoint as file


def denoiser(channels=8):
    return Denoiser(UNet((1, 8, 8), channels, (1,), 1, ()), GaussianProcess(Linear(10)), Eps())


def content(model=None):
    model = model or denoiser()
    state = {f"{name}.{k}": v for name in ("ema", "denoiser") for k, v in model.state_dict().items()}
    return {"config": {}, "format": file.FORMAT, "step": 3, "state_dict": state}


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path):
    file.write(content(), tmp_path / "last.ckpt")
    assert file.read(tmp_path / "last.ckpt")["step"] == 3
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    file.write(content(), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        file.write({**content(), "step": 4}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    code = (
        "import sys, torch; from pathlib import Path; from anysigma.runs import checkpoint as f\n"
        "for step in range(10**6):\n"
        "    f.write(dict(config={}, format=2, step=step, state_dict={'x': torch.zeros(10**6)}), Path(sys.argv[1]))\n"
    )
    path = tmp_path / "last.ckpt"
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while not path.exists():
            time.sleep(0.02)
        time.sleep(0.03 + 0.041 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert file.read(path)["state_dict"]["x"].shape == (10**6,)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.unlink(), "there is no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "truncated, or no file of ours"),
        (lambda p: p.write_bytes(b""), "truncated, or no file of ours"),
        (lambda p: p.write_text("hello"), "truncated, or no file of ours"),
        (lambda p: torch.save({"x": 1}, p), "not written by anysigma"),
        (lambda p: torch.save([1, 2], p), "not written by anysigma"),
        (lambda p: torch.save({**content(), "format": 99}, p), "format 99, this version reads 2"),
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

    torch.save({**content(), "config": Hostile()}, tmp_path / "last.ckpt")
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
