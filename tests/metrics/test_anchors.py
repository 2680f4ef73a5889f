"""What stands beside a distance: real images in the place of generated ones, and the limit of infinitely many."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from anysigma.metrics import anchors as module
from anysigma.metrics.anchors import (
    HELD_OUT,
    REDRAWN,
    SPLITS,
    TRAINING,
    Anchor,
    anchors,
    draws_of,
    kept,
    real_split,
    to_held_out,
)
from anysigma.metrics.fidelity import frechet, measures
from anysigma.metrics.frechet import Moments, NoLimit, extrapolated
from anysigma.metrics.vectors import vectors
from anysigma.studies.quality import RealImages


@pytest.fixture(scope="module")
def train(digits, features):
    return vectors(digits.train, features)


@pytest.fixture(scope="module")
def held_out(digits, features):
    return vectors(digits.held_out, features)


def test_the_closed_form_is_torch_fidelitys_distance(train, held_out, features):
    for one in (held_out, held_out[:50], train[:700] + 1):  # fewer images than features too
        ours = Moments.of(train).distance(Moments.of(one))
        assert ours == pytest.approx(frechet(one, train, features), rel=1e-4)
        assert ours == pytest.approx(Moments.of(one).distance(Moments.of(train)), rel=1e-5)
    assert Moments.of(train).distance(Moments.of(train)) == pytest.approx(0, abs=1e-5)


def test_every_measure_has_its_anchors_at_equal_counts(train, held_out, features):
    found = anchors(train, held_out, 180, 8, features)
    limit = found.pop("fd_digits_infinite")
    assert limit.keys() == {SPLITS} and limit[SPLITS].value < found["fd_digits"][SPLITS].value
    assert found.keys() == {"fd_digits", "kid_digits", "precision_digits", "recall_digits"}
    for metric, some in found.items():  # KID and its like of the first draws alone
        draws = {SPLITS: 8 if metric == "fd_digits" else 2, HELD_OUT: 2, REDRAWN: 2}
        assert {kind: one.draws for kind, one in some.items()} == draws
    by_hand = [
        frechet(one, rest, features) for one, rest in (real_split(torch.cat([train, held_out]), 180, i) for i in range(8))
    ]
    mean, sd = torch.tensor(by_hand).mean().item(), torch.tensor(by_hand).std().item()
    splits = found["fd_digits"][SPLITS]
    assert (splits.value, splits.sd, splits.error) == pytest.approx((mean, sd, sd / 8**0.5), rel=1e-5)
    assert len(real_split(train, 360, 0)[0]) == 360
    assert anchors(train, held_out, 60, 8, features)["fd_digits"][SPLITS].value > splits.value  # biased upward by 1/n


def test_the_held_out_images_are_an_anchor_of_their_own(train, held_out, features):
    alone = anchors(train, held_out, 360, 2, features)["fd_digits"][HELD_OUT]
    assert alone == Anchor(pytest.approx(frechet(held_out, train, features), rel=1e-4))
    assert str(alone) == "3.5" and str(Anchor(2.5, 0.9, 0.1, 200)) == "2.5 (one draw ± 0.9, 200 draws)"
    beside = to_held_out(train, held_out, 360, 8, features)
    assert beside.draws == 2 and 2 < beside.value < 6


def test_above_what_is_held_out_only_training_images_drawn_again_are_left(train, held_out, features):
    assert anchors(train, held_out, 361, 4, features)["fd_digits"].keys() == {REDRAWN}


def test_the_card_says_so(digits, features):
    data = SimpleNamespace(train=digits.train, held_out=digits.held_out, hash="h")
    assert RealImages(data, features, 361, 4, None).card(2)["held_out"] == "360 images, fewer than n"
    assert RealImages(data, features, 360, 4, None).card(2)["held_out"] == "360 images"


@pytest.mark.parametrize("splits, beside", [(200, 25), (4, 2)])
def test_the_card_says_how_many_draws_each_measure_has(train, held_out, features, splits, beside, monkeypatch):
    assert draws_of(splits, features) == {"anchor_draws": splits, "anchor_draws_beside": beside}
    if splits == 4:
        found = anchors(train, held_out, 180, splits, features)
        assert (found["fd_digits"][SPLITS].draws, found["kid_digits"][SPLITS].draws) == (splits, beside)
    monkeypatch.setattr(module, "WIDE", 32)
    assert draws_of(splits, features) == {"anchor_draws": splits}  # nothing else is anchored there


def test_in_wide_features_the_distance_alone_is_anchored_for_as_long_as_allowed(train, held_out, features, monkeypatch):
    monkeypatch.setattr(module, "WIDE", 32)
    found = anchors(train, held_out, 360, 4, features)
    assert found.keys() == {"fd_digits"}
    assert found["fd_digits"][HELD_OUT].value == pytest.approx(frechet(held_out, train, features), rel=1e-4)
    narrow = to_held_out(train, held_out, 360, 8, features)
    monkeypatch.setattr(module, "WIDE", 64)
    assert to_held_out(train, held_out, 360, 8, features).value == pytest.approx(narrow.value, rel=1e-3)
    monkeypatch.setattr(module, "WIDE", 32)
    monkeypatch.setattr(module, "SECONDS", 0)
    assert anchors(train, held_out, 360, 50, features)["fd_digits"][SPLITS].draws == 2


def test_anchors_are_kept_by_what_they_were_made_of(digits, features, tmp_path):
    real = RealImages(digits, features, 360, 4, str(tmp_path))
    found = real.anchors
    (path,) = tmp_path.glob("anchors-*.json")
    content = json.loads(path.read_text())
    content["anchors"]["fd_digits"][SPLITS]["value"] = 7.0
    path.write_text(json.dumps(content))
    assert replace(real).anchors["fd_digits"][SPLITS].value == 7.0
    path.write_text("cut")
    assert replace(real).anchors == found
    assert replace(real, n=90).anchors["fd_digits"] != found["fd_digits"] and len(list(tmp_path.glob("anchors-*"))) == 2
    assert kept(None, lambda: {}, {}) == {}


def gaussians(reference: Moments, n: int, sets: int, seed: int) -> list[torch.Tensor]:
    z = torch.randn(sets, n, len(reference.mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return list(reference.mean + z @ reference.root)


def test_the_limit_of_the_references_own_gaussian_is_zero(train):
    reference = Moments.of(train)
    sets = gaussians(reference, 360, 12, seed=0)
    at_n = sum(reference.distance(Moments.of(one)) for one in sets) / 12
    values = torch.tensor(extrapolated(sets, reference))
    assert at_n > 1.5  # all of it bias
    assert abs(values.mean()) < 3 * values.std() / 12**0.5 and values.mean().abs() < at_n / 4


def test_the_limit_of_a_gaussian_moved_away_is_what_it_was_moved_by(train):
    reference = Moments.of(train)
    sets = [one + 0.25 for one in gaussians(reference, 360, 12, seed=1)]
    values = torch.tensor(extrapolated(sets, reference))
    assert abs(values.mean() - 64 * 0.25**2) < 3 * values.std() / 12**0.5


def test_no_limit_is_given_where_the_sets_do_not_bear_it(train):
    reference = Moments.of(train)
    sets = gaussians(reference, 360, 5, seed=0)
    curved = [torch.cat([one[:180], one[:180]]) for one in sets]  # half of them twice: no 1/N of n independent images
    refused = {"one set": sets[:1], "127 images in 64 features": [one[:127] for one in sets], "not linear": curved}
    for why, some in refused.items():
        with pytest.raises(NoLimit, match=why):
            extrapolated(some, reference)


def test_a_figure_has_its_sets_its_anchors_and_its_distance_to_held_out_images(digits, features):
    real = RealImages(digits, features, 90, 4, None)
    images = digits.held_out[torch.randperm(360, generator=torch.Generator().manual_seed(3))]
    found = real.sets(vectors(images, features))
    rows = {row.metric: row for row in real.rows(found, {"S": 5})}
    assert next(iter(rows)) == "fd_digits" and rows["fd_digits_held_out"].anchors.keys() == {TRAINING}
    for metric in ("fd_digits", "precision_digits"):
        by_hand = [{m.metric: v for m, v in measures(one, real.reference, features).items()}[metric] for one in found]
        assert rows[metric].sets == by_hand and len(set(by_hand)) == 4
        assert rows[metric].anchors == real.anchors[metric]
    assert rows["precision_digits"].better == rows["recall_digits"].better == 1
    limit = real.limit(found, {})
    assert limit.value is None and limit.card == {"no_limit": "90 images in 64 features: at least two a feature are needed"}


def test_the_distance_to_the_held_out_images_is_to_those_and_to_no_others(digits, features):
    real = RealImages(digits, features, 360, 4, None)
    rows = {
        row.metric: row
        for row in real.rows(real.sets(vectors(torch.cat([digits.held_out, digits.train[:360]]), features)), {})
    }
    own, trained = rows["fd_digits_held_out"].sets
    assert own == pytest.approx(0, abs=1e-3) and 2 < trained < 6
    own, trained = rows["fd_digits"].sets
    assert own == pytest.approx(frechet(real.held_out, real.reference, features), rel=1e-4) and trained < own
