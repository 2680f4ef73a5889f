"""Distances: two libraries agree, a set is at distance 0 of itself, unequal n is refused."""

import pytest
import torch

from anysigma.data.digits import Digits
from anysigma.metrics.features import ClassifierFeatures, NoFeatures, none
from anysigma.metrics.fidelity import Monitor, distance, floor, mean_and_error, real_splits
from anysigma.studies.fidelity import distances


@pytest.fixture(scope="module")
def features():
    return ClassifierFeatures("digits", (1, 8, 8))


@pytest.fixture(scope="module")
def digits():
    return Digits()


def test_torchmetrics_and_torch_fidelity_agree_on_the_same_images(features, digits):
    monitor = Monitor(features, (1, 8, 8), torch.device("cpu"))
    monitor.update(digits.train, real=True)
    for images in (digits.held_out, 255 - digits.held_out):  # the second time with real statistics kept
        monitor.update(images, real=False)
        assert monitor.compute() == pytest.approx(distance(images, digits.train, features), abs=1e-3)


def test_a_set_is_at_distance_zero_of_itself_and_far_from_noise(features, digits):
    noise = torch.randint(0, 256, digits.held_out.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert distance(digits.train, digits.train, features) == pytest.approx(0, abs=1e-6)
    assert distance(noise, digits.train, features) > 20 * distance(digits.held_out, digits.train, features)


def test_the_distance_of_two_gaussians_has_its_closed_form(digits):
    class Pixels:
        name, sha256, num_features = "pixels", "0" * 64, 2

        def __call__(self, images):
            return images[:, 0, 0, :2].float()

    a = torch.randint(0, 40, (400, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    # moved by 5 and 7 with the same covariance: the distance is 5² + 7²
    b = a.clone()
    b[:, 0, 0, 0] += 5
    b[:, 0, 0, 1] += 7
    assert distance(a, b, Pixels()) == pytest.approx(74, abs=1e-3)


def test_the_floor_is_seeded_kept_and_at_the_same_n(features, digits, tmp_path):
    images = torch.cat([digits.train, digits.held_out])
    first = floor(images, 360, 3, features, tmp_path)
    assert [len(half) for half, _ in real_splits(images, 360, 1)] == [360]
    assert len(list(tmp_path.iterdir())) == 1
    assert floor(images, 360, 3, features, tmp_path) == floor(images, 360, 3, features) == first
    assert floor(images, 120, 3, features)["mean"] > first["mean"]  # biased upward by 1/n


def test_unequal_n_is_refused(features, digits):
    with pytest.raises(ValueError, match="a set of 100 generated images cannot stand beside a floor at 360"):
        distances((digits.train[:100],), digits.train, 360, features)


def test_mean_and_error_over_disjoint_sets():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    assert mean_and_error([4.0]) == (4.0, None)


def test_the_shipped_features_name_themselves(features):
    card = features.card()
    assert card["features"] == "digits" and len(card["features_sha256"]) == 64
    assert card["held_out_accuracy"] > 0.95 and card["trained_on"] == "1437 training images"


def test_the_stated_accuracy_is_the_one_measured(features, digits):
    predicted = features.network(digits.held_out).argmax(1)
    measured = (predicted == digits.labels[1437:]).double().mean().item()
    assert measured == pytest.approx(features.facts["held_out_accuracy"], abs=1e-4)


def test_features_do_not_change_under_autocast(features, digits):
    plain = features(digits.held_out)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(features(digits.held_out), plain)


def test_absent_weights_foreign_shapes_and_no_features_say_so():
    with pytest.raises(FileNotFoundError, match="no weights at"):
        ClassifierFeatures("digits", (1, 8, 8), weights_path="/nowhere.safetensors")
    with pytest.raises(ValueError, match="were made for shape"):
        ClassifierFeatures("digits", (3, 8, 8))
    with pytest.raises(NoFeatures, match="no feature network"):
        none()
