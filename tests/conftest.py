"""What the tests share: denoisers whose optimal eps is known in closed form, and small networks that are not zero."""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from anysigma.data.digits import Digits
from anysigma.diffusion.exact import ExactDenoiser, ExactNetwork, gaussian, mixture, point_mass
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.schedules.linear import Linear
from anysigma.metrics.features import ClassifierFeatures
from anysigma.runs.seal import Sealing

__all__ = ["ExactDenoiser", "ExactNetwork", "gaussian", "mixture", "point_mass"]

Module = TypeVar("Module", bound=nn.Module)

# One thread a process, in the processes that tests start too: two teams of threads on two cores wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# And one way to compute, fp32 and contiguous, on every machine: no trial is made.
os.environ["ANYSIGMA_HARDWARE"] = "{}"
# `make test &` in a script starts with Ctrl-C ignored, and so would every process that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def randomized(module: Module, seed: int = 0, std: float = 0.1) -> Module:
    """The module with every all-zero parameter drawn from N(0, std²): a fresh U-Net returns 0 and would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """N(0, 1) from a generator of its own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def no_noise() -> Tensor:
    """A noise source that must not be asked."""
    raise AssertionError("noise was drawn")


def sealed(path: Path) -> None:
    """Give a file, whatever it is, the seal with which checkpoints end: it is then looked into."""
    body = path.read_bytes().removesuffix(b"\0\0")  # where an archive has no comment
    with open(path, "wb") as file:
        sealing = Sealing(file)
        sealing.write(body + b"\0\0")
        sealing.end()


def forked(target: Callable, world: int, place: Path) -> list:
    """What `target(rank, world, place)` left as `place`/<rank>.pkl in each of so many processes, forked from this one."""
    fork = multiprocessing.get_context("fork").Process
    members = [fork(target=target, args=(rank, world, place)) for rank in range(world)]
    for member in members:
        member.start()
    for member in members:
        member.join(100)
    assert [member.exitcode for member in members] == [0] * world
    return [pickle.loads((place / f"{rank}.pkl").read_bytes()) for rank in range(world)]


class CountingNoise:
    """The given noises one after the other (zeros where they end), and how often it was asked."""

    def __init__(self, shape: Sequence[int], draws: Sequence[Tensor] = ()):
        self.shape, self.draws, self.count = tuple(shape), draws, 0

    def __call__(self) -> Tensor:
        self.count += 1
        return self.draws[self.count - 1] if self.count <= len(self.draws) else torch.zeros(self.shape, dtype=torch.float64)


@pytest.fixture(scope="session")
def process() -> GaussianProcess:
    """DDPM's process: linear β, T = 1000."""
    return GaussianProcess(Linear())


@pytest.fixture(scope="session")
def short() -> GaussianProcess:
    """A process of ten steps."""
    return GaussianProcess(Linear(T=10))


@pytest.fixture(autouse=True)
def same_weights_every_time():
    """Networks draw their first weights from the global generator: seeded, a failure can be repeated."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def features():
    """The features that ship with the digits."""
    return ClassifierFeatures("digits", (1, 8, 8))


@pytest.fixture(scope="session")
def digits():
    """Their images."""
    return Digits()


@pytest.fixture
def clock(monkeypatch):
    """`time.perf_counter` says what the test sets `now` to."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock
