"""Errors and verdicts: closed forms, tables of the literature, and the rate of false alarms that is promised."""

import math

import pytest
import torch

from anysigma.metrics.statistics import between, mean_and_error, paired, t_limit, welch, wilson
from anysigma.report.results import Row
from anysigma.report.verdict import counted, difference


def test_mean_and_error_over_disjoint_sets():
    assert mean_and_error([1.0, 2.0, 3.0]) == (2.0, pytest.approx(1 / 3**0.5))
    assert mean_and_error([4.0]) == (4.0, None)


@pytest.mark.parametrize(("df", "limit"), [(1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042), (math.inf, 1.960)])
def test_students_t(df, limit):
    assert t_limit(df) == pytest.approx(limit, abs=5e-4)


@pytest.mark.parametrize(
    ("found", "n", "low", "high"),  # Newcombe 1998, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval(found, n, low, high):
    assert wilson(found / n, n) == pytest.approx((low, high), abs=5e-5)


def test_the_difference_of_two_shares():  # Newcombe 1998, table II (a), method 10
    a, b = 56 / 70, 48 / 80
    verdict = between(a, wilson(a, 70), b, wilson(b, 80))
    assert (verdict.low, verdict.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert verdict.distinct


def test_pairs_drop_what_they_share_and_welch_does_not():
    shared = torch.tensor([3.0, -2.0, 7.0, 0.5])
    a, b = shared + torch.tensor([1.0, 1.1, 0.9, 1.0]), shared
    verdict = paired(a.tolist(), b.tolist())
    error = mean_and_error(a - b)[1]
    assert (verdict.low, verdict.high) == pytest.approx((1 - 3.1824 * error, 1 + 3.1824 * error), rel=1e-4)
    assert verdict.distinct
    one, other = ((*mean_and_error(x), 4) for x in (a, b))
    assert not welch(one, other).distinct


def test_welchs_degrees_of_freedom():
    (x, e, n), (y, f, m) = (10.0, 1.0, 5), (6.0, 2.0, 8)
    df = (e**2 + f**2) ** 2 / (e**4 / (n - 1) + f**4 / (m - 1))
    verdict = welch((x, e, n), (y, f, m))
    assert verdict.high - verdict.value == pytest.approx(t_limit(df) * 5**0.5)


def test_figures_without_any_spread_are_told_apart_unless_they_are_equal():
    assert paired([1.0, 2.0], [0.5, 1.5]).distinct
    assert not paired([1.0, 2.0], [1.0, 2.0]).distinct
    assert not welch((1.0, 0.0, 3), (1.0, 0.0, 3)).distinct


def row(values):
    mean, error = mean_and_error(values)
    return Row("fd", mean, error, 100, sets=list(values), better=-1)


@pytest.mark.parametrize("same_noise", [True, False])
@pytest.mark.parametrize("sets", [2, 3, 5])
def test_equal_settings_raise_the_stated_rate_of_false_alarms(same_noise, sets):
    """1,000 pairs of settings that differ in nothing: 5 % are told apart, within three errors of 1,000 draws."""
    generator = torch.Generator().manual_seed(sets)
    shared, own = torch.randn(2, 1000, 2, sets, generator=generator, dtype=torch.float64)
    shared[:, 1] = shared[:, 0] if same_noise else shared[:, 1]
    values = (50 + 2 * shared + own).tolist()
    alarms = sum(difference(row(a), row(b), same_noise=same_noise).distinct for a, b in values)
    limit = 3 * (0.05 * 0.95 / 1000) ** 0.5
    assert alarms / 1000 < 0.05 + limit
    if same_noise:  # Student's t is exact; Welch's, with few sets, errs on the safe side
        assert alarms / 1000 > 0.05 - limit


def test_two_standard_errors_of_three_sets_would_raise_more_than_twice_as_many():
    a, b = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d = a - b
    alarms = (d.mean(1).abs() > 2 * d.std(1) / 3**0.5).double().mean().item()
    assert 0.15 < alarms < 0.23  # t of 2 degrees of freedom beyond 2


def test_without_two_sets_or_an_error_there_is_no_verdict():
    assert difference(row([1.0]), row([2.0]), same_noise=True) is None
    assert difference(row([1.0, 2.0]), row([2.0]), same_noise=False) is None
    assert difference(Row("a", 1.0), Row("a", 2.0), same_noise=True) is None
    assert difference(Row("a", None), Row("a", 2.0), same_noise=True) is None
    assert difference(Row("a", 1.0, 0.1, 50), Row("a", 2.0, 0.1, 50), same_noise=True).distinct
    share = Row("a", 0.5, n=100, interval=wilson(0.5, 100)), Row("a", 0.9, n=100, interval=wilson(0.9, 100))
    assert difference(*share, same_noise=True).how == "Newcombe"
    assert counted([None]).startswith("No comparison")
    assert counted([difference(*share, same_noise=True)] * 20).startswith("20 comparisons; were nothing different, about 1 ")
