"""What is told of turns: who works when, spread, ratios with their interval."""

import math
import random
from statistics import median

import pytest
from benchmarks.pairs import in_turn, ratio, spread, turn_steps


def test_one_works_at_a_time_and_every_other_round_goes_backwards():
    asked = []
    contestants = {name: lambda name=name: asked.append(name) or len(asked) for name in "abc"}
    found = in_turn(contestants, 3)
    assert "".join(asked) == "abc" + "cba" + "abc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_a_drift_that_all_share_leaves_the_ratio_alone():
    rng, clock = random.Random(0), iter(range(1000))
    drifting = {
        name: lambda own=own: own * 0.9 ** next(clock) * (1 + rng.gauss(0, 1e-3)) for name, own in (("a", 3), ("b", 2))
    }
    rates = in_turn(drifting, 10)
    found = ratio(rates["a"], rates["b"])
    assert abs(found["ratio"] - 1.5) < 0.01 and found["low"] < 1.5 < found["high"]  # though the machine slowed down by 7


def test_the_ratio_is_the_geometric_mean_and_does_not_mind_who_is_first():
    one, other = [2.0, 8.0, 4.0], [1.0, 2.0, 4.0]
    there, back = ratio(one, other), ratio(other, one)
    assert there["ratio"] == pytest.approx(2.0) and there["pairs"] == 3
    assert there["ratio"] * back["ratio"] == pytest.approx(1) and there["low"] * back["high"] == pytest.approx(1)
    half = 4.302652729749 * math.log(2) / math.sqrt(3)  # t of two degrees of freedom, of the logarithms 1, 2 and 0 of 2
    assert math.log(there["high"] / there["ratio"]) == pytest.approx(half)


def test_the_interval_covers_as_often_as_it_says():
    rng = random.Random(1)
    draws = 1000
    inside = 0
    for _ in range(draws):
        ones = [1.3 * math.exp(rng.gauss(0, 0.1)) for _ in range(10)]
        others = [math.exp(rng.gauss(0, 0.1)) for _ in range(10)]
        found = ratio(ones, others)
        inside += found["low"] < 1.3 < found["high"]
    assert abs(inside / draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / draws)


def test_one_pair_has_no_interval():
    assert ratio([3.0], [2.0]) == {"ratio": pytest.approx(1.5), "pairs": 1}


def test_spread_and_turns():
    values = [3.0, 1.0, 2.0, 9.0]
    assert spread(values) == {"median": median(values), "min": 1.0, "max": 9.0, "n": 4}
    assert [turn_steps(step, 4.0) for step in (0.1, 3.0, 60.0)] == [40, 1, 1]
