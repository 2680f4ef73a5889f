"""Work done ahead: the items' order, a bounded number of results, errors in their place, and no thread left behind."""

import random
import threading
import time
from contextlib import closing

import pytest

from anysigma.data.ahead import ahead


def left():
    """Threads of ours that are still there."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ahead")]


def slowly(k):
    time.sleep(random.Random(k).random() / 200)
    return k * k


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 3, 40])
def test_results_come_in_the_order_of_the_items(threads, n):
    assert list(ahead(slowly, range(n), threads, 2 * threads)) == [k * k for k in range(n)]
    assert left() == []


@pytest.mark.parametrize("begun", [1, 3, 8])
def test_no_more_items_are_asked_for_than_may_wait(begun):
    asked = []

    def items():
        for k in range(30):
            asked.append(k)
            yield k

    for taken, _ in enumerate(ahead(slowly, items(), 2, begun), 1):
        assert len(asked) - taken <= begun
    assert asked == list(range(30))


def test_several_are_under_way_at_once():
    meet = threading.Barrier(3, timeout=60)
    assert len(list(ahead(lambda _: meet.wait(), range(6), 3, 6))) == 6  # alone, each would wait for ever


def test_an_error_is_raised_in_its_place_and_ends_the_work():
    def bad(k):
        if k in (3, 4):
            raise ValueError(k)
        return slowly(k)

    found = []
    with pytest.raises(ValueError, match="3"):
        found.extend(ahead(bad, range(1000), 2, 4))
    assert found == [0, 1, 4] and left() == []


def test_who_stops_taking_ends_the_work():
    done = []
    with closing(ahead(lambda k: done.append(k), iter(int, 1), 2, 4)) as endless:
        next(endless)
    assert left() == [] and len(done) <= 5
