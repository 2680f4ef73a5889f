"""Contestants are made, take their turns and say what they are; peers where they are installed."""

import numpy as np
import pytest
from benchmarks.child import PEERS, Child
from benchmarks.course import Course
from benchmarks.races import Entry, Race
from benchmarks.task import NETWORKS, Task, held_to

RACE = Race("tiny", "a tiny step", "tiny", 8, (), steps=1)


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A course in a folder of the tests."""
    return Course(tmp_path_factory.mktemp("course"), rounds=2, seconds=0.1, threads=1)


def test_our_training_obeys_step_by_step_and_splits_its_time(where):
    child = where.child(RACE, Entry("ours", "ours.step"), "contiguous")
    try:
        assert child.facts["parameters"] == NETWORKS["tiny"].parameters and child.facts["threads"] == 1
        rate, answer = child.rate(steps=3)
        assert answer["steps"] == 3 and rate == 3 * 8 / answer["seconds"]
        assert 0 < answer["after_backward"] < answer["seconds"]
        assert child.ask(seconds=0.2)["seconds"] >= 0.2
        child.ask(n=5, to=str(where.folder / "images.npy"))
        images = np.load(where.folder / "images.npy")
        assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8
        assert child.ask(steps=1)["steps"] == 1  # and trains on
    finally:
        child.close()
    assert not list((where.folder / RACE.key).rglob("*.ckpt"))  # saving is not timed


def test_a_child_that_dies_is_told_with_its_own_words(where):
    with pytest.raises(RuntimeError, match="memory_format=none"):
        where.child(RACE, Entry("wrong", "ours.step"), "none")


def test_parameters_are_held_to_those_that_were_to_be_compared():
    task = Task("digits", 1)
    wanted = NETWORKS["digits"].parameters
    assert held_to(wanted, task) == wanted and held_to(int(1.03 * wanted), task, within=0.04)
    with pytest.raises(ValueError, match="were to be compared"):
        held_to(wanted + 1, task)


@pytest.mark.skipif(not PEERS.exists(), reason="the peers are not installed; `make bench` installs them")
@pytest.mark.parametrize("who", ["diffusers_peer.step", "diffusers_peer.sample"])
def test_a_peer_obeys_too_and_has_as_many_parameters(where, who):
    task = Task("tiny", 8, images=where.images("tiny"), folder=str(where.folder / who), threads=1, S=2)
    child = Child(who, task, PEERS)
    try:
        assert child.facts["parameters"] == NETWORKS["tiny"].parameters
        assert child.rate(steps=2)[1]["steps"] == 2
    finally:
        child.close()
