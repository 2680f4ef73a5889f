"""Waiting for what one process does alone: longer than a collective waits, and not for one that gives no sign of life."""

import multiprocessing
import os
import signal
import socket
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from anysigma.machine import waiting
from anysigma.machine.distributed import everyones
from anysigma.machine.meeting import agreed, same, told
from anysigma.machine.waiting import Patience
from anysigma.machine.watch import Silent, lost


def met(rank, world, place):
    """In a group whose collectives wait a second."""
    dist.init_process_group(
        "gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=1)
    )


def port(place):
    """One that is free, for all to read."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (place / "port").write_text(str(free.getsockname()[1]))


def members(function, world, place, seconds=30):
    """Forked, each given its rank; exit codes, None where one still runs or is stopped (it is killed)."""
    fork = multiprocessing.get_context("fork").Process
    every = [fork(target=function, args=(rank, world, place)) for rank in range(world)]
    for one in every:
        one.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and sum(one.is_alive() for one in every) > (
        function in (stops_at_the_second, stops_with_the_store)
    ):
        time.sleep(0.05)
    codes = [one.exitcode for one in every]
    for one in every:
        one.kill()
    return codes


def takes_its_time(rank, world, place):
    met(rank, world, place)
    waiting.BEAT = 0.2
    with Patience(1.5) as others:
        for _ in range(2):
            if rank == 0:
                time.sleep(2.5)
            others.wait()
    assert everyones(rank) == list(range(world))


def stops_at_the_second(rank, world, place):
    met(rank, world, place)
    waiting.BEAT = 0.2
    with Patience(1.5) as others:
        others.wait()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(Silent, match="process 1 timed out") as silent:
            others.wait()
    assert lost(silent.value)


def stops_with_the_store(rank, world, place):
    """The first process keeps the store, and nothing that is asked of it is answered any more."""
    store = dist.TCPStore("127.0.0.1", int((place / "port").read_text()), world, rank == 0, timedelta(seconds=20))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=20))
    waiting.BEAT = 0.2
    with Patience(1.5) as others:
        others.wait()
        if rank == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(Silent, match="keeps the store timed out"):
            others.wait()
    os._exit(0)


def fails_in_a_collective(rank, world, place):
    met(rank, world, place)
    if rank == 0:
        time.sleep(2.5)
        os._exit(0)
    with pytest.raises(RuntimeError) as late:
        everyones(rank)
    assert lost(late.value) and not lost(RuntimeError("shapes differ")) and not lost(ValueError("gloo"))


def test_what_one_does_alone_may_take_longer_than_a_collective_waits(tmp_path):
    assert members(takes_its_time, 3, tmp_path) == [0, 0, 0]


def test_one_that_is_stopped_is_not_waited_for(tmp_path):
    assert members(stops_at_the_second, 3, tmp_path) == [0, None, 0]


@pytest.mark.slow
def test_nor_one_that_keeps_what_they_look_in(tmp_path):
    port(tmp_path)
    assert members(stops_with_the_store, 2, tmp_path) == [None, 0]


def test_a_collective_does_not_wait_so_long(tmp_path):
    """The waiting above is needed, and what the backend says then is known."""
    assert members(fails_in_a_collective, 2, tmp_path) == [0, 0]


def test_with_one_process_nobody_waits():
    with Patience(0.0) as others:
        others.wait()
    assert not others._speaking.is_alive()


def decide(rank, world, place):
    """As torchrun tells processes of each other, before they have met."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "WORLD_SIZE": str(world),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": (place / "port").read_text()}  # fmt: skip
    assert told([rank, "a"]) == [[one, "a"] for one in range(world)] and agreed(rank) == 0
    same({"step": 3})
    words = "processes do not agree on step: 0 on process 0, 1 on process 1; every machine needs"
    with pytest.raises(ValueError if rank == 0 else SystemExit, match=words if rank == 0 else "2"):
        same({"the rest": 1, "step": rank})
    time.sleep(0.5 * (rank == 0))  # it keeps the store


def test_processes_of_torchrun_decide_alike_before_they_meet(tmp_path):
    port(tmp_path)
    assert members(decide, 3, tmp_path) == [0, 0, 0]


def test_one_process_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    same({"step": 3})
    assert told("a") == ["a"] and agreed(7) == 7
