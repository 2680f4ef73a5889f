"""`init=<run>`: another run's averaged weights as the first ones."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anysigma.runs.checkpoint import read

ROOT = Path(__file__).parents[2]


def train(folder, *words):
    line = [sys.executable, ROOT / "train.py", "debug=true", "logger=csv", "model.channels=16", *words]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder, "run=first").returncode == 0
    return folder


def weights(folder, run, prefix):
    state = read(folder / f"logs/train/{run}/checkpoints/last.ckpt")["state_dict"]
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def test_a_run_begins_with_the_averaged_weights_of_another(first):
    # A learning rate of almost nothing: what the run ends with is what it began with.
    done = train(first, "run=second", "init=first", "seed=1", "optimizer.adam.lr=1e-12", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    averaged, raw = weights(first, "first", "ema."), weights(first, "first", "denoiser.")
    assert any(not torch.equal(averaged[name], raw[name]) for name in averaged)
    for prefix in ("denoiser.", "ema."):
        for name, value in weights(first, "second", prefix).items():
            torch.testing.assert_close(value, averaged[name], rtol=0, atol=1e-9)


def test_it_trains_on_from_there(first):
    done = train(first, "run=third", "init=first", "trainer.max_steps=3")
    assert done.returncode == 0, done.stderr
    averaged = weights(first, "first", "ema.")
    assert any(not torch.equal(value, averaged[name]) for name, value in weights(first, "third", "denoiser.").items())


@pytest.mark.parametrize(
    ("words", "message"),
    [(["init=nothing"], "neither a run"), (["init=first", "model.channels=8"], "another network than its config")],
)
def test_what_cannot_be_begun_with_is_one_line(first, words, message):
    done = train(first, "run=other", *words)
    assert done.returncode == 2 and message in done.stderr and "\n" not in done.stderr.strip()
