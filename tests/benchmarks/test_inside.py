"""What is counted inside a step: waits of the host, operations, differences between two ways, time to quality."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks import busy, operations, parity, time_to_quality
from benchmarks.ours import ddim
from benchmarks.task import NETWORKS
from benchmarks.watched import Waits, peak_of
from torch import nn

from anysigma.diffusion.denoiser import Denoiser
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.parameterizations import Eps
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.dpmpp import DPMSolverPP
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.schedules.cosine import Cosine


def test_a_read_number_is_a_wait_and_the_optimisers_own_are_not():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], foreach=True)
    for _ in range(2):  # its step counts are read from the second step on, if ever
        weight.sum().backward()
        with Waits("cpu") as none:
            optimizer.step()
    assert none.asked == 0 and none.warned is None
    with Waits("cpu") as two:
        weight.sum().item()
        assert bool(weight.sum() > -1e9)
    weight.sum().item()  # after the block
    assert two.asked == 2
    with torch.inference_mode(), Waits("cpu") as two:
        weight.sum().item()
        assert bool(weight.sum() > -1e9)
    assert two.asked == 2


def test_a_coefficient_of_the_schedule_is_no_wait_and_the_sampler_has_no_other():
    denoiser = Denoiser(parity.made(NETWORKS["tiny"]), GaussianProcess(Cosine()), Eps())
    with torch.inference_mode(), Waits("cpu") as none:
        assert denoiser.process.alpha(3).item() < 1
        for sampler in (ddim(3), replace(ddim(3), sigma=Eta(1.0)), DPMSolverPP(steps=3, tau=ddim(3).tau, clip=True)):
            list(generate(denoiser, sampler, range(2), NETWORKS["tiny"].shape, seed=0, block=2))
    assert none.asked == 0


def test_operations_are_those_of_the_closed_form_and_count_on_nothing():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(2, 3, 3, padding=1)

        def forward(self, x, t):
            return self.body(x)

    forward = 2 * 3 * 2 * 9 * 4 * 5  # outputs x inputs x taps x pixels, a product and a sum each
    assert operations.forward(Plain(), (2, 4, 5)) == pytest.approx(forward / 1e9)
    assert operations.step(Plain(), (2, 4, 5)) == pytest.approx(2 * forward / 1e9)  # the images need no gradient
    small, large = (operations.forward(parity.made(NETWORKS[name]), NETWORKS[name].shape) for name in ("tiny", "digits"))
    assert small < large
    assert peak_of("cpu")[0] > 1e8


def test_parity_tells_the_same_from_another_network(monkeypatch):
    ways = parity.ways("cpu")
    kept = {name: ways[name] for name in ("bf16", "channels_last")}
    monkeypatch.setattr(parity, "ways", lambda device: kept)
    same = parity.measure("tiny", "cpu", 2)["rows"]
    assert [row[-1] for row in same] == ["yes", "yes", ""] and same[2][0] == "compiled"
    assert 1e-4 < float(same[0][2]) < 3e-2  # bf16 is not fp32

    def shifted(network):
        network.last[2].weight.data.mul_(1.01)
        return network

    kept["channels_last"] = shifted
    assert parity.measure("tiny", "cpu", 2)["rows"][1][-1] == "no"


def test_training_goes_on_by_slices_until_the_judge_is_content(tmp_path):
    file = tmp_path / "images.npy"

    class Fake:
        def __init__(self, done_after=99):
            self.asked, self.left = [], done_after

        def ask(self, **order):
            self.asked.append(order)
            if "to" in order:
                np.save(order["to"], np.zeros((2, 1, 8, 8), np.uint8))
                return {}
            self.left -= 1
            return {"steps": 1, "seconds": order["seconds"], "done": self.left == 0}

    class Judge:
        def __init__(self, distances):
            self.n, self.limit, self.distances = 1, 3.0, iter(distances)

        def __call__(self, images):
            return next(self.distances)

    reached = time_to_quality.until(Fake(), Judge([9.0, 4.0, 2.9, 1.0]), file, 5.0, 300.0)
    assert reached == {"reached": True, "seconds": 15.0, "distances": [9.0, 4.0, 2.9]}
    late = time_to_quality.until(Fake(), Judge([9.0] * 99), file, 5.0, 20.0)
    assert not late["reached"] and late["seconds"] == 20.0 and len(late["distances"]) == 4
    ended = time_to_quality.until(Fake(done_after=2), Judge([9.0] * 99), file, 5.0, 300.0)
    assert not ended["reached"] and ended["seconds"] == 10.0
    assert time_to_quality.row("a", "fp32", [reached, ended])[2:4] == ["> 12", "15, > 10"]


def test_rates_are_read_as_far_as_they_are_written(tmp_path):
    file = tmp_path / "metrics.csv"
    assert busy.rates(file) == []
    with open(file, "w") as written:
        rows = csv.writer(written)
        rows.writerows([["metric", "step", "value"], ["train/images_per_s", 2, 100.0], ["train/loss", 2, 0.5]])
        written.write("train/images_per_s,4,")  # half a line
    assert busy.rates(file) == [100.0]
