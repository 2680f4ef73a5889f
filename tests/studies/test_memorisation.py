"""Copies are found, held-out images are not taken for copies; speed is measured at every S."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import gaussian
from torch import nn

from anysigma.data.digits import Digits
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.diffusion.schedules.linear import Linear
from anysigma.metrics.anchors import HELD_OUT
from anysigma.metrics.features import ClassifierFeatures
from anysigma.report.results import Result
from anysigma.studies import memorisation, speed
from anysigma.studies.base import Model
from anysigma.studies.generated import Images, generated
from anysigma.studies.memorisation import Memorisation, Tails, in_pixels, nearest, pixels, shifted, views
from anysigma.studies.speed import Speed, processor, report

N = 360


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    return SimpleNamespace(train=data.train, held_out=data.held_out)


@pytest.fixture(scope="module")
def features():
    return ClassifierFeatures("digits", (1, 8, 8))


def compared(images, data, features):
    result = Result("memorisation")
    Memorisation(n=len(images), shown=4, seed=0, block=64, cache=None).compare(result, Images.shared(images), data, features)
    return result, {(row.metric, row.params["space"].split()[-1]): row for row in result.rows}


def moved(images, down, right, fill):
    """By hand: into a frame one pixel wider, filled, and the middle of it cut out again."""
    framed = nn.functional.pad(images.float(), (1, 1, 1, 1), value=fill).to(torch.uint8)
    return framed[..., 1 - down : 9 - down, 1 - right : 9 - right]


WAYS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]


def planted(data, fill):
    """N training images, each moved a pixel some way, every second one mirrored."""
    one = [moved(data.train[i][None], *WAYS[i % 9], fill) for i in range(N)]
    return torch.cat([image.flip(-1) if i % 2 else image for i, image in enumerate(one)])


def test_copies_are_found_and_their_originals_named(digits, features):
    result, found = compared(digits.train[:N], digits, features)
    for space in ("pixels", "features"):
        for metric in ("too_near", "copies"):
            row = found[metric, space]
            assert row.value == 1.0 and row.interval[0] > 0.98 and row.error is None
        assert found["too_far", space].value == 0.0 and found["too_far", space].interval[1] > 0.005
    assert in_pixels(digits.train[[5, 900, 7]], digits.train)[1].tolist() == [5, 900, 7]
    assert "100.0 % (98.9 to 100.0) too near" in result.lines[0] and "± 0.0" not in "".join(result.lines)


@pytest.mark.parametrize("fill", [0, 130])
def test_copies_that_moved_by_a_pixel_or_were_mirrored_are_found_whatever_filled_the_border(digits, features, fill):
    images = planted(digits, fill)
    _, found = compared(images, digits, features)
    assert found["too_near", "pixels"].value == found["copies", "pixels"].value == 1.0
    distance, index = in_pixels(images, digits.train)
    assert distance.max() == 0 and (index == torch.arange(N)).float().mean() > 0.99
    plain = nearest(pixels(images), digits.train)[0]  # what a search in place sees
    assert (plain[torch.arange(N) % 9 != 4] > 0.1).all()


def test_mirrored_copies_are_found_in_features_too(digits, features):
    _, found = compared(digits.train[:N].flip(-1), digits, features)
    assert found["too_near", "features"].value == found["too_near", "pixels"].value == 1.0


def test_noise_is_too_far(digits, features):
    noise = torch.randint(0, 256, (N, 1, 8, 8)).to(torch.uint8)
    _, found = compared(noise, digits, features)
    assert found["too_far", "pixels"].value == 1.0 and found["too_near", "pixels"].value == 0.0
    assert found["too_far", "features"].value > 0.5  # features see less of it
    _, few = compared(torch.cat([digits.train[: N - 18], noise[:18]]), digits, features)
    assert few["too_far", "pixels"].value == pytest.approx(0.05)


def test_held_out_images_lie_beyond_either_end_about_as_often_as_is_said(digits, features):
    for first, second in ((slice(0, None, 2), slice(1, None, 2)), (slice(0, 180), slice(180, None))):
        data = SimpleNamespace(train=digits.train, held_out=digits.held_out[second])
        _, found = compared(digits.held_out[first], data, features)
        for space in ("pixels", "features"):
            for metric in ("too_near", "too_far"):
                row, anchor = found[metric, space], found[metric, space].anchors[HELD_OUT]
                assert anchor.value == pytest.approx(2 / 181) and abs(row.value - anchor.value) < 3.5 * anchor.sd
            assert found["copies", space].value == 0
            median = found["nearest_median", space]
            assert median.value == pytest.approx(median.anchors[HELD_OUT].value, rel=0.15)


@pytest.mark.parametrize(("n", "m"), [(360, 360), (64, 100), (200, 30)])
def test_the_expected_share_and_its_spread_are_those_of_two_samples_of_one_law(n, m):
    tails = [Tails.of(torch.rand(n) ** 3, torch.rand(m) ** 3) for _ in range(3000)]
    for side in ("near", "far"):
        shares = torch.tensor([getattr(one, side) for one in tails])
        error = tails[0].sd / 3000**0.5
        assert shares.mean().item() == pytest.approx(tails[0].expected, abs=4 * error)
        assert shares.std().item() == pytest.approx(tails[0].sd, rel=0.15)
    assert tails[0].expected == pytest.approx(max(1, round(0.01 * (m + 1))) / (m + 1))


def test_the_spread_of_one_and_of_two_images_beside_one_other_is_exact():
    assert Tails.of(torch.rand(1), torch.rand(1)).sd == pytest.approx(0.5)  # 0 and 1 are equally likely
    assert Tails.of(torch.rand(2), torch.rand(1)).sd == pytest.approx((1 / 6) ** 0.5)  # so are 0, 1/2 and 1


def test_the_views_are_18_and_small_directions_stay():
    assert len(set(views((5, 1, 8, 8)))) == 18 and (0, 0, False) in views((5, 1, 8, 8))
    assert list(views((5, 2, 1, 1))) == [(0, 0, False), (0, 0, True)]
    assert {(down, right) for down, right, _ in views((1, 3, 2, 9))} == {(0, -1), (0, 0), (0, 1)}


def test_a_shift_repeats_the_border():
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4)
    assert shifted(image, 1, 0)[0, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert shifted(image, 0, -1)[0, 0, 0].tolist() == [1, 2, 3, 3]


def test_what_is_kept_makes_the_figures_again(digits, features):
    result, found = compared(digits.train[:50] // 2, digits, features)
    kept = result.arrays["memorisation"]
    for space in ("pixels", "features"):
        made, real = kept[f"{space}_made"], np.sort(kept[f"{space}_held_out"])
        assert len(made) == 50 and len(real) == 100
        assert found["too_near", space].value == (made < real[0]).mean()
        assert found["too_far", space].value == (made > real[-1]).mean()


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


def test_the_study_compares_as_many_images_as_are_asked_for(features, digits, tmp_path):
    data = SimpleNamespace(train=digits.train[:50], held_out=digits.held_out[:20], hash="h")
    model = Model(gaussian(GaussianProcess(Linear(T=10)), torch.zeros(1, 8, 8), 0.25), (1, 8, 8), {"step": 7})
    sampler = Generalized(steps=2, sigma=Eta(0.0), tau=Uniform(), clip=True)
    study = Memorisation(n=6, shown=4, seed=3, block=4, cache=None)
    result, again = study.run(model, sampler, data, features, tmp_path), Result("memorisation")
    study.compare(again, generated(model, sampler, 6, seed=3, block=4, folder=tmp_path), data, features)
    assert [(row.metric, row.value, row.n) for row in result.rows] == [(row.metric, row.value, 6) for row in again.rows]
    facts = {"step": 7, "S": 2, "seed": 3, "block": 4, "n": 6, "reference": "50 training images", "features": "digits"}
    assert facts.items() <= result.card.items() and result.study == "memorisation"
    assert np.array_equal(result.pictures["memorisation"], again.pictures["memorisation"])


def test_speed_gives_both_figures_at_every_s_that_t_allows():
    denoiser = gaussian(GaussianProcess(Linear(T=10)), torch.zeros(1, 2, 2), 0.25)
    model = Model(denoiser, (1, 2, 2), {"precision": "32-true"})
    study = Speed(steps=[2, 5, 50], repeats=2, block=4, seed=0)
    result = study.run(model, Generalized(steps=5, sigma=Eta(0.0), tau=Uniform(), clip=True), None, None, None)
    values = {(row.metric, row.params["S"]): row.value for row in result.rows}
    assert values.keys() == {(m, S) for m in ("seconds_per_image", "images_per_second") for S in (2, 5)}
    assert all(value > 0 for value in values.values())
    assert result.card["threads"] == torch.get_num_threads() and result.card["device"] == "cpu"


def test_rates_and_seconds_an_image_are_means_over_the_repeats_with_their_errors():
    result = Result("speed", card={"threads": 1, "device_name": "a CPU"})
    seconds = {2: torch.tensor([1.0, 2.0], dtype=torch.float64), 5: torch.tensor([4.0, 4.0], dtype=torch.float64)}
    report(result, seconds, block=4)
    found = {(row.metric, row.params["S"]): (row.value, row.error, row.better) for row in result.rows}
    assert found["images_per_second", 2] == pytest.approx((3, 1, 1)) and found["images_per_second", 5] == (1, 0, 1)
    assert found["seconds_per_image", 2] == pytest.approx((0.375, 0.125, -1)) and found["seconds_per_image", 5] == (1, 0, -1)
    assert {(row.n, row.params["block"]) for row in result.rows} == {(2, 4)}
    (table,) = result.tables
    assert table.rows == [["2", "3", "2 to 4", "0.375"], ["5", "1", "1 to 1", "1"]] and len(table.columns) == 4
    assert table.note == "blocks of 4 images, 1 thread, a CPU"
    (curve,) = result.plots["speed"].curves
    assert curve.x == [2, 5] and curve.y == pytest.approx((3, 1)) and curve.error == pytest.approx([1, 0])
    assert result.lines == ["speed: S = 2 3 images/s, S = 5 1 images/s"]


def test_the_processor_is_named_as_linux_tells_it(monkeypatch):
    monkeypatch.setattr(speed.Path, "read_text", lambda _: "vendor_id\t: A\nmodel name\t: A 5: 2 GHz\nmodel name\t: other\n")
    assert processor() == "A 5: 2 GHz"
