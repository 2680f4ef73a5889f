"""Copies are found, held-out images are not taken for copies; speed is measured at every S."""

import pytest
import torch
from conftest import gaussian

from anysigma.data.digits import Digits
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.diffusion.schedules.linear import Linear
from anysigma.studies import memorisation
from anysigma.studies.base import Model
from anysigma.studies.memorisation import compared, nearest, pixels
from anysigma.studies.speed import Speed


def test_copies_are_found_and_held_out_images_are_not_suspicious():
    data = Digits()
    reference, real = pixels(data.train), pixels(data.held_out)
    distance, index = nearest(pixels(data.train[[5, 900, 7]]), reference)
    assert distance.tolist() == [0.0] * 3 and index.tolist() == [5, 900, 7]
    copied = compared(distance, nearest(real, reference)[0])
    assert copied["suspicious"] == copied["copies"] == 1.0
    halves = compared(nearest(real[::2], reference)[0], nearest(real[1::2], reference)[0])
    assert halves["suspicious"] < 0.05 and halves["copies"] == 0
    assert halves["median"] == pytest.approx(halves["median_held_out"], rel=0.2)


def test_the_nearest_are_those_of_all_pairs_however_they_are_cut(monkeypatch):
    rows, reference = torch.randn(13, 4), torch.randn(29, 4)
    by_hand = (rows[:, None] - reference).square().sum(2).sqrt().min(1)
    for size in (1, 29 * 5, 10**6):
        monkeypatch.setattr(memorisation, "AT_ONCE", size)
        distance, index = nearest(rows, reference)
        torch.testing.assert_close(distance, by_hand.values)
        assert torch.equal(index, by_hand.indices)


def test_pixel_distance_is_the_root_mean_squared_difference():
    black, white = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    assert nearest(pixels(black), pixels(white))[0].item() == pytest.approx(2.0)


def test_speed_gives_both_figures_at_every_s_that_t_allows():
    denoiser = gaussian(GaussianProcess(Linear(T=10)), torch.zeros(1, 2, 2), 0.25)
    model = Model(denoiser, (1, 2, 2), {"precision": "32-true"})
    study = Speed(steps=[2, 5, 50], repeats=2, block=4, seed=0)
    result = study.run(model, Generalized(steps=5, sigma=Eta(0.0), tau=Uniform(), clip=False), None, None, None)
    values = {(row.metric, row.params["S"]): row.value for row in result.rows}
    assert values.keys() == {(m, S) for m in ("seconds_per_image", "images_per_second") for S in (2, 5)}
    assert all(value > 0 for value in values.values())
    assert result.card["threads"] == torch.get_num_threads() and result.card["device"] == "cpu"
