"""A trial takes what is faster by 5 %, one thing after another, and no longer than it may."""

import pytest
import torch
from torch import nn

from anysigma.machine import trial
from anysigma.machine.hardware import OF_SAMPLING, Hardware
from anysigma.machine.trial import FEW, PAIRS, fastest, forward, plan, race


class Clock:
    """Time that passes only while work is done."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(trial.time, "perf_counter", lambda: self.now)

    def work(self, seconds, first=0.0):
        """Work on a hardware that takes what `seconds` says of it, its first call so much more."""

        def made(hardware):
            waiting = [first]

            def step():
                self.calls.append(hardware)
                self.now += seconds(hardware) + (waiting.pop() if waiting else 0.0)

            return step

        return made


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def seconds(hardware, bf16=0.5, last=1.2, fused=0.9):
    return (
        (bf16 if hardware.precision == "bf16-mixed" else 1.0)
        * (last if hardware.memory_format == "channels_last" else 1.0)
        * (fused if hardware.fused is True else 1.0)
    )


def test_what_wins_stays_and_the_rest_is_tried_beside_it(clock):
    best, gain = fastest(Hardware(), ("precision", "memory_format", "fused"), clock.work(seconds), 100)
    assert (best.precision, best.memory_format, best.fused) == ("bf16-mixed", "contiguous", True)
    assert gain == pytest.approx(1 / (0.5 * 0.9))
    assert {h.precision for h in clock.calls if h.fused is True} == {"bf16-mixed"}


@pytest.mark.parametrize("factor, wins", [(1 / 1.04, False), (1 / 1.06, True)])
def test_less_than_five_percent_is_no_win(clock, factor, wins):
    best, gain = fastest(Hardware(), ("fused",), clock.work(lambda h: seconds(h, fused=factor)), 100)
    assert best.fused is wins and (gain > 1) is wins


def test_what_a_person_said_is_not_tried(clock):
    hardware = Hardware(precision="32-true", memory_format="channels_last", fused=False)
    best, gain = fastest(hardware, ("precision", "memory_format", "fused"), clock.work(seconds), 100)
    assert (best, gain, clock.calls) == (hardware.plain(), 1.0, [])


def test_a_hopeless_one_costs_one_call(clock):
    work = clock.work(lambda h: seconds(h, bf16=50.0))
    best, _ = fastest(Hardware(), ("precision",), work, 100)
    assert best.precision == "32-true" and [h.precision for h in clock.calls].count("bf16-mixed") == 1


def test_it_ends_in_time_and_has_at_least_a_pair_of_each(clock):
    fastest(Hardware(), ("precision", "memory_format", "fused"), clock.work(seconds), 0.0)
    assert len(clock.calls) == 1 + 3 * 3  # the plain one's first call; of each other its first, and one pair
    clock.calls.clear()
    fastest(Hardware(), ("precision",), clock.work(seconds), 1000.0)
    assert len(clock.calls) == 2 + 2 * PAIRS


def test_the_first_call_does_not_count(clock):
    now, then = (clock.work(lambda _, s=s: s, first=5.0)(None) for s in (1.0, 0.5))
    now()
    assert race(now, then, 6.0, 100) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "per_image, batch, images",
    [(0.001, 128, 128), (0.01, 128, FEW), (0.2, 128, 8), (0.5, 128, 4), (9.0, 128, 4), (9.0, 2, 2)],
)
def test_long_steps_are_tried_at_fewer_images(clock, per_image, batch, images):
    found, _ = plan(lambda n: clock.work(lambda _: n * per_image), Hardware(), batch)
    assert found == images


def test_a_forward_pass_leaves_the_network_as_it_was():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.seen = nn.Conv2d(1, 2, 3), []

        def forward(self, x, t):
            y = self.conv(x)
            self.seen.append((y.dtype, x.shape, t.dtype, torch.is_inference_mode_enabled()))
            return y

    network, stride = Net(), Net().conv.weight.stride()
    best, _ = fastest(Hardware(accelerator="cpu"), OF_SAMPLING, forward(network, (1, 8, 8), 3, torch.device("cpu")), 0.1)
    assert network.seen == [] and network.conv.weight.stride() == stride
    forward(network, (1, 8, 8), 3, torch.device("cpu"))(best)()


def test_one_that_fails_has_lost(clock):
    def made(hardware):
        if hardware.fused is True:
            raise TypeError("this optimiser has none")
        return clock.work(seconds)(hardware)

    def other(hardware):
        step = made(hardware)

        def fails():
            if hardware.precision == "bf16-mixed":
                raise RuntimeError("Index put requires the source and destination dtypes match")
            step()

        return fails

    best, gain = fastest(Hardware(), ("precision", "memory_format", "fused"), other, 100)
    assert (best.precision, best.memory_format, best.fused, gain) == ("32-true", "contiguous", False, 1.0)
