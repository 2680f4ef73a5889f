"""A device without room, on purpose: what is computed in halves is the same, is said once and stands on the card."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randn, randomized

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.diffusion.schedules.linear import Linear
from anysigma.machine.memory import out_of_memory
from anysigma.networks.unet import UNet
from anysigma.report.results import Result
from anysigma.studies.base import Model
from anysigma.studies.generated import generated, sampled
from anysigma.studies.halves import InHalves, Rows

SHAPE = (1, 8, 8)
ROOT = Path(__file__).parents[2]
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate")


class Small(torch.nn.Module):
    """A network with room for so many images at once, and what it was asked for."""

    def __init__(self, room, error=CUDA):
        super().__init__()
        self.network, self.room, self.error, self.asked = network(), room, error, []

    def forward(self, x_t, t):
        assert len(t) == len(x_t)
        self.asked.append(len(x_t))
        if len(x_t) > self.room:
            raise copy.copy(self.error)
        return self.network(x_t, t)


def network():
    torch.manual_seed(0)
    return randomized(UNet(SHAPE, channels=8, multipliers=[1, 2])).eval()


def denoiser(room, error=CUDA):
    return InHalves(Denoiser(Small(room, error), GaussianProcess(Linear(T=10)), Eps()), Rows())


@pytest.mark.parametrize("error", [CUDA, CPU, RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")])
@pytest.mark.parametrize("room, asked", [(8, [8]), (7, [8, 4, 4]), (3, [8, 4, 2, 2, 2, 2]), (1, [8, 4, 2] + [1] * 8)])
def test_a_batch_that_does_not_fit_is_computed_in_halves(error, room, asked):
    one, x_t = denoiser(room, error), randn(8, *SHAPE, dtype=torch.float32)
    for t in (7, torch.arange(1, 9)):
        one.rows.parts, one.network.asked = 1, []
        torch.testing.assert_close(one.output(x_t, t), denoiser(8).output(x_t, t), rtol=0, atol=1e-4)
        assert one.network.asked == asked


def test_what_fits_is_bit_equal_and_halves_are_remembered():
    x_t, plain = randn(6, *SHAPE, dtype=torch.float32), denoiser(6)
    assert torch.equal(plain.output(x_t, 3), Denoiser(plain.network, plain.process, plain.parameterization).output(x_t, 3))
    one = denoiser(3)
    for _ in range(3):
        one.output(x_t, 3)
    assert one.network.asked == [6, 3, 3, 3, 3, 3, 3]
    assert one.output(x_t[:1], 3).shape == (1, *SHAPE)


def test_rows_that_do_not_divide():
    one, x_t = denoiser(2), randn(7, *SHAPE, dtype=torch.float32)
    torch.testing.assert_close(one.output(x_t, 3), denoiser(7).output(x_t, 3), rtol=0, atol=1e-4)
    assert one.network.asked == [7, 4, 2, 2, 2, 1]


def test_one_image_that_does_not_fit_ends_in_the_error():
    one = denoiser(0)
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"):
        one.output(torch.zeros(5, *SHAPE), 3)
    assert one.network.asked == [5, 3, 2, 1]


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes"), MemoryError("out of memory"), ValueError("out of memory")]
)
def test_no_other_error_is_taken_for_it(error):
    one = denoiser(0, error)
    with pytest.raises(type(error)):
        one.output(torch.zeros(4, *SHAPE), 3)
    assert one.network.asked == [4] and not out_of_memory(error)


SAMPLER = Generalized(steps=5, sigma=Eta(0.5), tau=Trailing(), clip=True)


def test_blocks_and_numbers_stay_images_agree_it_is_said_once_and_marked(tmp_path, capsys):
    """η = 0.5: every image has its own noise, whatever it is computed beside."""
    whole, halved = (Model(denoiser(room), SHAPE, {"weights_sha256": "w"}) for room in (6, 2))
    where, files = {"seed": 3, "block": 6}, []
    for i, one in enumerate((whole, halved)):
        generated(one, SAMPLER, 15, **where, folder=tmp_path / str(i))
        files.append({path.name: np.load(path).astype(int) for path in (tmp_path / str(i)).rglob("*.npy")})
    assert files[0].keys() == files[1].keys() == {"000000.npy", "000001.npy", "000002.npy"}
    assert max(abs(files[0][name] - files[1][name]).max() for name in files[0]) <= 1  # of 255
    assert not list((tmp_path / "0").rglob("rows.txt"))
    later = Model(denoiser(6), SHAPE, whole.card)  # on a machine with room, from the images that are there
    generated(later, SAMPLER, 15, **where, folder=tmp_path / "1")
    assert later.denoiser.network.asked == [] and later.denoiser.rows.parts == 1
    marked = later.denoiser.rows.mark(Result("fidelity"), torch.device("cpu"))
    assert marked.card == {"rows": "1/4 of a block at once, for memory: equal to 1e-4"}
    floats = [sampled(one, SAMPLER, 15, **where) for one in (whole, halved)]
    torch.testing.assert_close(*floats, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.count("are computed in halves of their rows") == 2  # and when they were taken
    results = [one.denoiser.rows.mark(Result("fidelity", card={"block": 6}), torch.device("cpu")) for one in (whole, halved)]
    assert results[0].card == {"block": 6}
    assert results[1].card == {"block": 6, "rows": "1/4 of a block at once, for memory: equal to 1e-4"}


def test_a_copy_shares_what_was_learnt_and_names_of_weights_stay():
    one = denoiser(2)
    two = copy.deepcopy(one)
    two.output(torch.zeros(4, *SHAPE), 3)
    assert one.rows.parts == 2
    assert one.state_dict().keys() == Denoiser(one.network, one.process, one.parameterization).state_dict().keys()


# --- real ones -----------------------------------------------------------------------------------------------------

REAL = """
import resource, sys, torch
sys.path[:0] = sys.argv[1:]
from test_halves import *
torch.set_num_threads(1)
network = randomized(UNet((3, 64, 64), channels=32, multipliers=[1, 1])).eval()
one = InHalves(Denoiser(network, GaussianProcess(Linear(T=10)), Eps()), Rows())
x_t = torch.randn(16, 3, 64, 64)
with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):  # whose own allocator says no word of memory
    first = one.output(x_t[:1], 3)
    whole = one.output(x_t, 3)
    assert one.rows.parts == 1
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + int(30e6), -1))
    halved = one.output(x_t, 3)
print(one.rows.parts, (whole - halved).abs().max().item())
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
def test_the_allocator_of_a_cpu_with_a_real_limit():
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(ROOT / "tests"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    parts, apart = done.stdout.splitlines()[-1].split()
    assert int(parts) > 1 and float(apart) < 1e-4 and "in halves of their rows" in done.stdout


# evaluate.py on a machine whose networks have room for 20 images at once
NARROW = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import torch, evaluate
from anysigma.compose.cli import entry
from anysigma.diffusion.denoiser import Denoiser
from anysigma.machine.distributed import rank_and_world

output = Denoiser.output

def narrow(self, x_t, t):
    if len(x_t) > 20 and rank_and_world()[0] == int(sys.argv[0][-4]):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return output(self, x_t, t)

Denoiser.output = narrow
entry(evaluate.main, {str(ROOT / "conf/evaluate")!r})
"""
WORDS = ("checkpoint=small", "debug=true", "n=40", "study.splits=2", "sampler.steps=4", "logger=csv", "features=digits")
TWO = ("hardware=cpu", "hardware.devices=2", "hardware.strategy=ddp")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a run of two steps."""
    place = tmp_path_factory.mktemp("run")
    words = ["debug=true", "logger=csv", "run=small", "model.channels=8", "model.multipliers=[1]", "trainer.max_steps=2"]
    words += ["study=objective", "features=none"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=place, capture_output=True, check=True)
    return place


@pytest.mark.parametrize(
    "rank, words", [(0, ()), pytest.param(1, TWO, marks=pytest.mark.slow)], ids=["alone", "rank 1 of two"]
)
def test_evaluate_goes_on_in_halves_and_the_card_says_so(rank, words, run, tmp_path):
    """Whichever process had no room: rank 0 says it once, and the figures stand."""
    shutil.copytree(run / "logs/train/small", tmp_path / "logs/train/small")
    (tmp_path / f"narrow{rank}.py").write_text(NARROW)
    line = [sys.executable, f"narrow{rank}.py", *WORDS, "study.block=40", *words]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("in halves of their rows") == 1
    (path,) = (tmp_path / "logs/evaluate/small").glob("fidelity-*/results.json")
    cards = json.loads(path.read_text())["cards"].values()
    assert cards and {card["rows"] for card in cards} == {"1/2 of a block at once, for memory: equal to 1e-4"}
    assert {card["block"] for card in cards if "block" in card} == {40}
