"""hardware.compile=true: the network's numbers and gradients, and a run that trains, goes on and is measured with it."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomized

from anysigma.machine.hardware import Hardware
from anysigma.machine.threads import Following
from anysigma.networks.unet import UNet
from anysigma.runs.checkpoint import read

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile asks for a C++ compiler"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """The one in /tmp may hold what a killed process left unfinished, and torch takes it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def small():
    return randomized(UNet((1, 8, 8), channels=8, multipliers=[1]), std=0.05).eval()


def answers(network, images=4):
    """Its output, and the gradients of its mean square in a row."""
    generator = torch.Generator().manual_seed(0)
    x_t, t = torch.randn(images, 1, 8, 8, generator=generator), torch.arange(1, images + 1)
    output = network(x_t, t)
    network.zero_grad()
    output.square().mean().backward()
    return output.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])


def test_a_compiled_network_has_the_plain_ones_numbers_and_gradients():
    plain = small()
    compiled = Hardware(accelerator="cpu", precision="32-true", compile=True, threads=1).apply(copy.deepcopy(plain))
    for images in (4, 3):
        for mine, theirs in zip(answers(compiled, images), answers(plain, images), strict=True):
            assert (mine - theirs).norm() < 1e-4 * theirs.norm()


def test_threads_follow_the_free_cores_without_a_new_compilation(monkeypatch):
    """What is read of the machine changes at every call; were it a part of what is compiled, so would that."""
    counts = [0]

    def now(self):
        counts[0] += 1
        self._next = float(counts[0])
        return 1

    monkeypatch.setattr("anysigma.machine.threads.FIRST", 0.0)
    monkeypatch.setattr(Following, "now", now)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    before, hardware = torch.get_num_threads(), Hardware(accelerator="cpu", precision="32-true", compile=True).placed()
    assert hardware.follows
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    network = hardware.apply(small())
    hardware.follow(network)
    x_t, t = torch.zeros(2, 1, 8, 8), torch.ones(2, dtype=torch.long)
    try:
        with torch.inference_mode():
            network(x_t, t)
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            for _ in range(12):
                network(x_t, t)
    finally:
        torch.set_num_threads(before)
    assert counts == [13] and compiled > 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def run(folder, *line):
    done = subprocess.run([sys.executable, *line], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_run_trains_goes_on_and_is_measured_compiled(tmp_path):
    words = ["debug=true", "logger=csv", "model.channels=8", "model.multipliers=[1]", "hardware.precision=32-true"]
    weights, images = {}, {}
    for name, how in (("plain", "hardware.compile=false"), ("compiled", "hardware.compile=true")):
        for steps in (10, 20):
            run(tmp_path, ROOT / "train.py", *words, how, f"run={name}", f"trainer.max_steps={steps}")
        checkpoint = read(tmp_path / f"logs/train/{name}/checkpoints/last.ckpt")
        weights[name] = torch.cat([one.flatten() for one in checkpoint["state_dict"].values()])
        assert checkpoint["step"] == 20 and checkpoint["config"]["hardware"]["compile"] is (name == "compiled")
        line = ["checkpoint=plain", "debug=true", "logger=csv", "n=40", "sets=2", "save=npz", "sampler.steps=4", how]
        run(tmp_path, ROOT / "evaluate.py", *line)
        (found,) = tmp_path.glob("logs/evaluate/plain/fidelity-*/images.npz")
        images[name] = np.load(found)["arr_0"].astype(int)
        assert json.loads((found.parent / "results.json").read_text())["rows"]
        shutil.rmtree(found.parent)
    assert (weights["compiled"] - weights["plain"]).norm() < 1e-3 * weights["plain"].norm()
    assert abs(images["compiled"] - images["plain"]).max() <= 1
