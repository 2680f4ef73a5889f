"""Study `fidelity`: its figures are those of the images it made, recomputed by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import mixture
from PIL import Image

from anysigma.data.digits import Digits
from anysigma.data.images import from_uint8
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Trailing
from anysigma.metrics.anchors import REDRAWN, TRAINING
from anysigma.metrics.features import ClassifierFeatures
from anysigma.metrics.fidelity import at_most, frechet
from anysigma.metrics.statistics import mean_and_error
from anysigma.metrics.vectors import vectors
from anysigma.report.pictures import grid
from anysigma.studies import quality
from anysigma.studies.base import Model
from anysigma.studies.generated import Images, generated
from anysigma.studies.quality import GRID, Fidelity, count, held_to_counts
from anysigma.studies.saving import save
from anysigma.studies.sets import fewer, sets_of
from anysigma.studies.trajectory import strip

SAMPLER = Generalized.with_eta(3, 0.0, Trailing(), True)


@pytest.fixture(scope="module")
def data():
    source = Digits()
    return SimpleNamespace(train=source.train[:90], held_out=source.held_out[:30], hash="h", source=source)


@pytest.fixture
def model(process, data):
    return Model(mixture(process, from_uint8(data.train), 0.02), (1, 8, 8), {"step": 7})


def fidelity(**changes):
    return Fidelity(**({"n": 40, "sets": 2, "splits": 2, "seed": 3, "block": 16, "save": None, "cache": None} | changes))


def test_every_figure_is_that_of_the_images_made(model, data, tmp_path):
    features = ClassifierFeatures("digits", (1, 8, 8))
    result = fidelity(save="npz").run(model, SAMPLER, data, features, tmp_path)
    images = generated(model, SAMPLER, 80, seed=3, block=16, folder=tmp_path).all()
    assert np.array_equal(np.load(tmp_path / "images.npz")["arr_0"], images[:, 0, :, :, None].numpy())
    made, real, held_out = (vectors(some, features) for some in (images, data.train, data.held_out))
    rows = {row.metric: row for row in result.rows}
    distances = [frechet(one, real, features) for one in made.split(40)]
    to_held_out = [frechet(at_most(one, 30), held_out, features) for one in made.split(40)]
    for name, by_hand, anchor in (("fd_digits", distances, REDRAWN), ("fd_digits_held_out", to_held_out, TRAINING)):
        assert rows[name].sets == pytest.approx(by_hand, rel=1e-4) and rows[name].anchors.keys() == {anchor}
        assert (rows[name].value, rows[name].error) == pytest.approx(mean_and_error(by_hand), rel=1e-4)
    assert [row.metric for row in result.rows if row.key] == ["fd_digits"]
    assert rows["fd_digits"].n == 40 and rows["fd_digits_held_out"].n == 30
    limit = rows["fd_digits_infinite"]
    assert limit.value is None and limit.label == "Fréchet distance, N → ∞" and limit.better == -1
    assert (
        result.lines[0].startswith("fd_digits ") and " 2 sets of 40 images to the training images; 95 %: " in result.lines[0]
    )
    why = "40 images in 64 features: at least two a feature are needed"
    assert result.lines[-1] == f"extrapolated to infinitely many images, the reference as it is: not given: {why}"
    assert np.array_equal(result.pictures["grid"], grid(images[:GRID]))
    assert np.array_equal(result.pictures["trajectory"], strip(model, SAMPLER, 3))
    expected = {
        "step": 7, "seed": 3, "block": 16, "n": 40, "sets": 2, "reference": "90 training images", "S": 3,
        "prc_reference": "40 of them", "held_out": "30 images, fewer than n", "anchor_draws": 2, "data_hash": "h",
        "anchor_draws_beside": 2,
    }  # fmt: skip
    assert {name: result.card[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("evaluations", "sets"),
    [(1, 5), (50, 5), (100, 5), (101, 4), (125, 4), (126, 3), (166, 3), (167, 2), (1000, 2), (4000, 2)],
)
def test_an_expensive_sampler_has_fewer_sets_and_never_one(evaluations, sets):
    assert sets_of(None, evaluations) == sets and sets_of(7, evaluations) == 7
    why = f"{sets} in place of 5: {evaluations:,} network evaluations an image"
    assert fewer(None, evaluations) == ({} if sets == 5 else {"fewer_sets": why}) and fewer(2, evaluations) == {}


def test_the_cost_is_said_first_and_the_card_says_why_there_are_few_sets(model, data, tmp_path, capsys, monkeypatch):
    made, features = quality.generated, ClassifierFeatures("digits", (1, 8, 8))

    def first(*args, **kwargs):
        said = capsys.readouterr().out
        assert said.startswith("2 sets of 40 images: 13,360 network evaluations, sampling takes about ")  # 5 blocks of 16
        return made(*args, **kwargs)

    monkeypatch.setattr(quality, "generated", first)
    result = fidelity(sets=None).run(model, replace(SAMPLER, steps=167), data, features, tmp_path)
    why = "2 in place of 5: 167 network evaluations an image"
    assert result.card["sets"] == 2 == len(result.rows[0].sets) and result.card["fewer_sets"] == why
    assert result.lines[0].endswith(f"; {why}")
    monkeypatch.undo()
    asked = fidelity().run(model, SAMPLER, data, features, tmp_path)
    assert "fewer_sets" not in asked.card and asked.card["sets"] == 2 and "in place of" not in asked.lines[0]


def test_without_features_it_draws_alone(model, data, tmp_path):
    result = fidelity(n=4, save="png").run(model, SAMPLER, data, None, tmp_path)
    images = generated(model, SAMPLER, GRID, seed=3, block=16, folder=tmp_path).all()
    assert not result.rows and np.array_equal(result.pictures["grid"], grid(images))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images/000005.png")), images[5, 0].numpy())
    assert result.title == "Fidelity" and "from real ones" in result.about


def test_two_channels_are_kept_as_arrays_alone(data, tmp_path):
    images = Images.shared(data.held_out[:2].expand(-1, 2, -1, -1))
    with pytest.raises(ValueError, match="takes 1 or 3 channels, these images have 2; save=npz takes any"):
        save(images, "png", tmp_path)
    save(images, "npz", tmp_path)
    assert np.load(tmp_path / "images.npz")["arr_0"].shape == (2, 8, 8, 2)


def test_what_could_not_be_measured_is_one_line(data):
    held_to_counts(4, 1, 2)
    held_to_counts(4, None, 2)
    held_to_counts(None, 1, 2)
    for counts, why in (((3, 1, 2), "at least 4 images"), ((4, 0, 2), "and 1 set"), ((4, 1, 1), "at least 2 draws")):
        with pytest.raises(ValueError, match=why):
            held_to_counts(*counts)
        with pytest.raises(ValueError, match=why):
            fidelity(**dict(zip(("n", "sets", "splits"), counts, strict=True)))
    with pytest.raises(ValueError, match="png, npz or null"):
        fidelity(save="gif")
    assert count(7, data) == 7 and count(None, data) == 30
    assert count(None, SimpleNamespace(held_out=range(9000))) == 5000
