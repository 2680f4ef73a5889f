"""Hardware: what stands in place of auto, and what cannot be."""

import pytest
import torch
from torch import nn

from anysigma.machine.hardware import PLAIN, Hardware


def test_plain_leaves_what_was_said():
    said = Hardware(precision="bf16-mixed", fused=True).plain()
    assert (said.precision, said.fused, said.memory_format) == ("bf16-mixed", True, "contiguous")
    assert not any(getattr(said, name) == "auto" for name in PLAIN)


@pytest.mark.parametrize(
    "words, message",
    [
        ({"fused": "yes"}, "hardware.fused=yes: auto, true or false"),
        ({"memory_format": "nhwc"}, "hardware.memory_format=nhwc: auto, channels_last, contiguous"),
        ({"precision": "bf16-true"}, "weights and their average stay in fp32"),
        ({"precision": "16-mixed", "accelerator": "cpu"}, "fp16 needs a GPU"),
        ({"threads": -1}, "hardware.threads=-1"),
        (
            {"devices": -1, "accelerator": "cpu"},
            "hardware.devices=-1: a number of processes from 1; -1, all of them, is for",
        ),
        ({"devices": "two"}, "hardware.devices=two: a number, auto, or a list of GPUs"),
        ({"devices": [0], "accelerator": "cpu"}, r"hardware.devices=\[0\]: a list names GPUs"),
        ({"timeout": 0}, "hardware.timeout=0: seconds, at least 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words, message):
    with pytest.raises(ValueError, match=message):
        Hardware(**words)


@pytest.mark.parametrize(
    "gpu, tf32, said", [(True, True, "32-true tf32"), (True, "auto", "32-true"), (False, True, "32-true")]
)
def test_a_figures_precision_says_what_products_are_rounded_to(monkeypatch, gpu, tf32, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert Hardware(precision="32-true", tf32=tf32).computes == said


def test_all_gpus_are_minus_one_or_auto(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [Hardware(devices=one).processes for one in (-1, "auto", [0, 2])] == [3, 3, 2]
    with pytest.raises(ValueError, match=r"^hardware\.devices=-2: "):
        Hardware(devices=-2)


def test_fp16_has_no_fused_optimiser(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="scaled gradients"):
        Hardware(precision="16-mixed", fused=True)


@pytest.mark.parametrize(
    "threads, cores, devices, most, follows",
    [(0, 4, 1, 4, True), (0, 4, 2, 2, True), (0, 1, 1, 1, False), (3, 4, 1, 3, False), (0, 4, 8, 1, False)],
)
def test_threads_are_shared_out_and_follow_unless_they_are_fixed(monkeypatch, threads, cores, devices, most, follows):
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores))
    hardware = Hardware(accelerator="cpu", threads=threads, devices=devices).placed()
    assert (hardware.most_threads, hardware.follows, hardware.processes) == (most, follows, devices)


def test_the_network_gets_its_format_and_the_precision_is_autocasts():
    network = nn.Conv2d(4, 4, 3)
    hardware = Hardware(accelerator="cpu", memory_format="channels_last", precision="bf16-mixed", threads=1)
    hardware.apply(network)
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    with hardware.autocast():
        assert network(torch.zeros(1, 4, 8, 8)).dtype is torch.bfloat16
    with Hardware(accelerator="cpu", precision="32-true").autocast():
        assert network(torch.zeros(1, 4, 8, 8)).dtype is torch.float32


@pytest.mark.parametrize("words, several", [({}, False), ({"devices": 2}, True), ({"strategy": "ddp"}, True)])
def test_several_processes_get_the_strategy_with_the_timeout(words, several):
    hardware = Hardware(accelerator="cpu", timeout=7, **words)
    assert hardware.lightning()["strategy"] == hardware.strategy
    asked = hardware.lightning(lambda timeout: timeout)["strategy"]
    assert asked == (7 if several else "auto")
