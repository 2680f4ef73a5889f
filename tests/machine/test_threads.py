"""Threads follow the free cores: what is read, and what follows from it."""

import os
import subprocess
import sys
import time

import pytest
import torch

from anysigma.machine import threads
from anysigma.machine.threads import EVERY, Following, Load, busy_seconds, cores

TICKS = os.sysconf("SC_CLK_TCK")


def stat(*rows):
    """/proc/stat with these (user, nice, system, idle) of cpu0, cpu1, …, in seconds."""
    lines = [f"cpu{i} " + " ".join(str(int(s * TICKS)) for s in (*row, 0, 0, 0, 0)) + " 0 0" for i, row in enumerate(rows)]
    return "\n".join(["cpu  1 2 3 4 5 6 7 8 9 10", *lines, "intr 1 2 3"])


class Others:
    """A Load that says what it is told."""

    known = True

    def __init__(self, *said):
        self.said = list(said)

    def others(self):
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    monkeypatch.setattr(threads, "affinity", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "FIRST", 0.0)


def test_the_work_of_this_processs_cores_alone_counts_and_none_that_makes_way(monkeypatch):
    text = stat((1, 50, 2, 90), (4, 0, 0, 90), (100, 0, 0, 0))
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    assert busy_seconds(text, {0, 1}) == pytest.approx(7)
    monkeypatch.setattr(os, "getpriority", lambda *_: 10)  # among equals
    assert busy_seconds(text, {0, 1}) == pytest.approx(57)


def test_others_are_all_work_but_ours(tmp_path):
    file, now, mine = tmp_path / "stat", [0.0], [0.0]
    file.write_text(stat((0, 0, 0, 0), (0, 0, 0, 0)))
    load = Load(own=lambda: mine[0], stat=file, clock=lambda: now[0])
    file.write_text(stat((2, 0, 1, 0), (3, 0, 0, 0)))
    now[0], mine[0] = 4.0, 2.0
    assert load.others() == pytest.approx((6 - 2) / 4)
    now[0], mine[0] = 5.0, 4.0  # clocks differ by a tick or two: never less than none
    assert load.others() == 0


def test_where_the_system_does_not_tell_the_count_stays(tmp_path):
    following = Following(3, load=Load(stat=tmp_path / "none"))
    assert not Load(stat=tmp_path / "none").known and [following.read() for _ in range(3)] == [3, 3, 3]


@pytest.mark.parametrize(
    "most, team, others, count",
    [(4, 1, 0.0, 4), (4, 1, 0.4, 4), (4, 1, 0.6, 3), (4, 1, 1.0, 3), (4, 1, 9.0, 1), (2, 1, 1.0, 2), (2, 2, 1.0, 1)],
)
def test_as_many_as_are_free(most, team, others, count):
    assert Following(most, team, Others(others)).count == count


def test_a_load_is_answered_at_once_and_its_end_when_it_lasts():
    following = Following(4, load=Others(0.0, 2.0, 0.0, 2.0, 0.0, 0.0, 0.4, 0.6, 0.4, 0.4, 0.4, 0.1, 0.1))
    #                            at the start 4;  2    2    2    2    4    4    3    3    3    3    3    4
    assert [following.read() for _ in range(12)] == [2, 2, 2, 2, 4, 4, 3, 3, 3, 3, 3, 4]


def test_it_reads_every_half_second_and_not_oftener():
    now, load = [0.0], Others(0.0, 3.0, 0.0)
    following = Following(4, load=load, clock=lambda: now[0])
    assert following.now() == 4
    now[0] = EVERY * 0.9
    assert following.now() == 4 and load.said == [3.0, 0.0]
    now[0] = EVERY
    assert following.now() == 1


def test_a_single_thread_follows_nothing():
    class Never:
        known = True

        def others(self):
            raise AssertionError("read")

    following = Following(1, load=Never())
    assert following.now() == 1


def test_before_every_call_of_a_network_its_threads_are_set(monkeypatch):
    monkeypatch.setattr(threads, "Following", lambda most: Following(most, load=Others(3.0)))
    before, network = torch.get_num_threads(), torch.nn.Linear(1, 1)
    try:
        torch.set_num_threads(2)
        threads.follow(network, 2)
        network(torch.zeros(1, 1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_cores_are_what_a_launcher_has_shared_out_else_the_affinity(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert cores() == 4


@pytest.mark.skipif(not threads.STAT.exists(), reason="/proc/stat is Linux's")
def test_a_busy_process_beside_is_seen(monkeypatch):
    """The real thing: a process that counts shows up as about a core, and we ourselves do not."""
    monkeypatch.undo()
    beside = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        load = Load()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            sum(range(1000))
        others = load.others()
    finally:
        beside.kill()
        beside.wait()
    assert others > 0.2  # its share of a core, on a machine whose other cores may be taken
