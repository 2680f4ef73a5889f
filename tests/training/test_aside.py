"""Calls aside: they run in order, and nothing that happens to them reaches the one who asked."""

import threading
import time

import pytest

from anysigma.training import aside
from anysigma.training.aside import Aside


class Hanging:
    """A call that does not return before the test has ended."""

    def __init__(self):
        self.begun, self.end = threading.Event(), threading.Event()

    def __call__(self):
        self.begun.set()
        self.end.wait()


@pytest.fixture
def hanging():
    hanging = Hanging()
    yield hanging
    hanging.end.set()


def test_calls_run_one_after_the_other_in_a_thread_of_their_own():
    said, found = [], []
    aside = Aside(said.append)
    for k in range(100):
        aside(lambda k=k: found.append((k, threading.current_thread())))
    assert aside.close(found.append, "end", limit=10)
    assert [k for k, _ in found[:-1]] == list(range(100)) and found[-1] == "end" and not said
    assert {thread for _, thread in found[:-1]} != {threading.current_thread()}


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_the_first_that_raises_ends_them_is_told_once_and_the_last_call_still_comes(error):
    def broken():
        raise error

    said, found = [], []
    aside = Aside(said.append)
    for call in (broken, lambda: found.append("after"), broken):
        aside(call)
    assert aside.close(found.append, "end", limit=10)
    assert said == [error] and found == ["end"] and aside.over


def test_who_asks_never_waits_for_a_call_that_hangs_and_the_end_has_its_limit(hanging):
    aside = Aside(print)
    aside(hanging)
    assert hanging.begun.wait(10)
    for _ in range(1000):
        aside(print)
    assert not aside.close(print, limit=0.1)


def test_a_call_that_hangs_ends_them_and_what_is_asked_for_later_takes_no_memory(hanging, monkeypatch):
    monkeypatch.setattr(aside, "STUCK", 0.05)
    said = []
    calls = Aside(said.append)
    calls(hanging)
    assert hanging.begun.wait(10)
    time.sleep(0.2)
    for _ in range(50):
        calls(print)
    assert calls.over and [str(error) for error in said] == ["no answer for 0 s"] and calls._calls.qsize() == 0


def test_too_many_that_wait_end_them(hanging, monkeypatch):
    monkeypatch.setattr(aside, "WAITING", 10)
    said = []
    calls = Aside(said.append)
    calls(hanging)
    assert hanging.begun.wait(10)
    for _ in range(50):
        calls(print)
    assert calls.over and [str(error) for error in said] == ["10 calls behind"]
    assert not calls.close(print, limit=0.1)


def test_waiting_ends_with_the_work_with_an_error_or_with_its_limit(hanging):
    found = []
    calls = Aside(print)
    calls(lambda: (time.sleep(0.1), found.append(1)))
    calls.wait(10)
    assert found == [1]
    calls(hanging)
    calls.wait(0.05)  # comes back
