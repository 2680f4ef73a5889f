"""The two-sample test: real halves are not told apart, what is not real is, and nothing is told by its grey levels alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import gaussian
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold

from anysigma.data.digits import Digits
from anysigma.diffusion.gaussian import GaussianProcess
from anysigma.diffusion.noise import stream_seed
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.sigma import Eta
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.diffusion.schedules.linear import Linear
from anysigma.metrics.anchors import Anchor
from anysigma.metrics.features import ClassifierFeatures
from anysigma.metrics.statistics import wilson
from anysigma.report.results import Result
from anysigma.studies.base import Model
from anysigma.studies.two_sample import HALVES, TwoSample, levelled, most, place, row, verdict

DEFAULT = {"n": None, "folds": 5, "repeats": 1, "trees": 30, "splits": 5, "seed": 0, "block": 64, "cache": None}


def study(**changes):
    return TwoSample(**(DEFAULT | changes))


@pytest.fixture(scope="module")
def digits():
    source = Digits()
    return SimpleNamespace(train=source.train, held_out=source.held_out, source=source, hash="h")


def compared(images, data, features=None, **changes):
    result = Result("two_sample")
    study(**changes).compare(result, images, data, features)
    return result, {one.params["space"]: one for one in result.rows}


def noisy(images, sd):
    """Noise of that sd on 0..255 added, held in the range."""
    return (images + sd * torch.randn(images.shape)).round().clamp(0, 255).to(torch.uint8)


def test_real_images_are_not_told_from_real_ones(digits):
    result, found = compared(digits.train[:360], digits, ClassifierFeatures("digits", (1, 8, 8)))
    assert found.keys() == {"pixels", "digits features"}
    for one in found.values():
        halves = one.anchors[HALVES]
        assert 0.4 < one.value < 0.6 and 0.45 < halves.value < 0.55 and 0 < halves.sd < 0.05 and halves.draws == 5
        assert one.key and one.interval == wilson(one.value, 720) and one.n == 360 and one.error is None
        assert one.value < most(halves) + 0.02
    assert len(result.lines) == len(result.tables[0].rows) == 2
    assert result.arrays["two_sample"]["pixels_halves"].mean() == pytest.approx(found["pixels"].anchors[HALVES].value)


def test_noise_of_12_levels_is_seen_that_a_distance_overlooks(digits):
    """A Fréchet distance in features does not move for an sd of 12/255."""
    images = noisy(digits.train[:360], 12)
    result, found = compared(images, digits)
    assert found["pixels"].value > 0.9 and result.lines[0].startswith("pixels: told from real ones: a forest is right on 9")


def test_grey_levels_alone_tell_nothing(digits):
    """Training images a little off their 17 levels are put back on them: told neither more nor less than as they were."""
    images = digits.train[:360]
    off = (images.int() + torch.randint(-7, 8, images.shape)).clamp(0, 255).to(torch.uint8)
    assert not torch.equal(off, images) and torch.equal(levelled(off, 17), images)
    raw = study().accuracy(off.flatten(1).numpy(), digits.held_out.flatten(1).numpy())
    assert raw > 0.95 and compared(off, digits)[1]["pixels"].value == compared(images, digits)[1]["pixels"].value < 0.6


def test_levels_are_those_of_the_data(digits):
    assert torch.equal(levelled(digits.train, 17), digits.train)
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levelled(every, 256), every) and levelled(every, 2).tolist() == [0] * 128 + [255] * 128
    assert levelled(every, 17).unique().tolist() == digits.train.unique().tolist()


def test_accuracy_is_of_images_the_forest_has_not_seen():
    """Rows without any structure: a forest that judged what it was grown on would be right on all."""
    a, b = (np.random.default_rng(seed).normal(size=(100, 5)) for seed in (0, 1))
    assert 0.3 < study().accuracy(a, b) < 0.7
    assert study().accuracy(a, b + 5) == 1.0 and study().accuracy(a, b) == study().accuracy(a, b)
    assert study(seed=1).accuracy(a, b) != study().accuracy(a, b)


def test_every_row_is_judged_once_by_the_forest_of_the_other_folds():
    a, b = (np.random.default_rng(seed).normal(size=(31, 4)) for seed in (0, 1))
    x, y, right = np.concatenate([a, b + 0.5]), np.repeat([0, 1], 31), 0
    seed = stream_seed(0, 2, "forest") % 2**32
    for others, own in StratifiedKFold(3, shuffle=True, random_state=seed).split(x, y):
        forest = RandomForestClassifier(7, random_state=seed).fit(x[others], y[others])
        right += (forest.predict(x[own]) == y[own]).sum()
    assert study(folds=3, trees=7)._right(x, y, 2) == right / 62


def test_repeats_are_cuts_of_their_own_and_the_accuracy_their_mean():
    """Rows a little apart: several cuts scatter less than one, about the same mean."""
    a, b = (np.random.default_rng(seed).normal(size=(60, 5)) for seed in (0, 1))
    x, y = np.concatenate([a, b + 0.3]), np.repeat([0, 1], 60)
    each = [study(trees=10)._right(x, y, repeat) for repeat in range(4)]
    assert study(trees=10, repeats=4).accuracy(a, b + 0.3) == pytest.approx(np.mean(each)) and len(set(each)) > 1


def test_real_halves_are_disjoint_and_of_all_real_images(monkeypatch):
    seen = []
    monkeypatch.setattr(TwoSample, "accuracy", lambda self, a, b: seen.append((a, b)) or 0.5)
    assert [study()._halves(np.arange(50)[:, None], 20, split) for split in range(4)] == [0.5] * 4
    for a, b in seen:
        assert len(a) == len(b) == 20 and len(np.union1d(a, b)) == 40
    assert len({tuple(a[:, 0]) for a, _ in seen}) == 4
    assert len(np.unique(np.concatenate([part for both in seen for part in both]))) == 50


def test_the_place_among_real_halves_and_what_one_more_would_stay_below():
    assert place(0.6, [0.5] * 20) == pytest.approx(1 / 21) and place(0.5, [0.5, 0.4, 0.6]) == 0.75
    values = torch.randn(4000, 6, dtype=torch.float64)
    beyond = [more > most(Anchor.of(null)) for *null, more in values.tolist()]
    assert sum(beyond) / 4000 == pytest.approx(0.025, abs=4 * (0.025 * 0.975 / 4000) ** 0.5)
    one = row("pixels", 0.52, Anchor(0.5, 0.02, 0.005, 20), 360)
    assert "pixels: not told from real ones: a forest is right on 52.0 % of 720 images" in verdict(one, 0.3)
    assert ": told from real ones" in verdict(row("pixels", 0.56, one.anchors[HALVES], 360), 0.05)


def test_what_is_compared_is_said_and_bounded(tmp_path, digits):
    denoiser = gaussian(GaussianProcess(Linear(T=10)), torch.zeros(1, 8, 8), 0.25)
    sampler = Generalized(steps=5, sigma=Eta(0.0), tau=Uniform(), clip=True)
    model = Model(denoiser, (1, 8, 8), {"step": 1})
    result = study(n=40, splits=2, trees=5).run(model, sampler, digits, None, tmp_path)
    card = {"n": 40, "folds": 5, "trees": 5, "grey_levels": 17, "seed": 0, "reference": "40 of 360 held-out images"}
    assert card.items() <= result.card.items() and result.card["versions"]["scikit-learn"]
    assert result.rows[0].value > 0.9 and result.rows[0].n == 40 and len(result.rows) == 1
    few = SimpleNamespace(train=digits.train[:3000], held_out=torch.cat([digits.train] * 2))
    assert study().count(digits) == study(n=5000).count(digits) == 360 and study().count(few) == 2000
    with pytest.raises(ValueError, match="each fold needs a held-out image"):
        study().count(SimpleNamespace(train=digits.train, held_out=digits.held_out[:4]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "2 folds"),
        ({"repeats": 0}, "1 repeat"),
        ({"trees": 0}, "1 tree"),
        ({"splits": 1}, "2 draws"),
        ({"n": 3}, "needs an image"),
    ],
)
def test_bad_input_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        study(**changes)
    assert "\n" not in str(error.value)
