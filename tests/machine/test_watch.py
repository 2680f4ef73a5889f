"""Who watches whom, when it says so, and what it leaves alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from anysigma.machine import watch
from anysigma.machine.watch import Watch, how, silent, stopped

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def ended(code):
    """A process that has ended so."""
    one = subprocess.Popen([sys.executable, "-S", "-c", f"import os; os._exit({code})"])
    one.wait()
    return one


@pytest.mark.parametrize(("code", "words"), [(0, None), (1, "process 1 ended with code 1"), (143, None), (130, None)])
def test_who_ended_well_or_was_asked_to_is_not_missed(code, words):
    assert Watch([ended(code)]).gone() == words


def test_exit_codes_in_words():
    assert [how(-9), how(-15), how(2)] == ["was ended by SIGKILL", "was ended by SIGTERM", "ended with code 2"]


def test_what_a_backend_says():
    late = RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation to complete")
    assert silent(late) == "another process did not answer within hardware.timeout"
    assert silent(RuntimeError("gloo: Connection\n reset")) == (
        "the connection to another process broke (gloo: Connection reset)"
    )
    assert len(silent(RuntimeError("x" * 1000))) < 300


def looking_after(place, first):
    """Starts two processes, the second of which hangs; then waits for what never comes."""
    watch.POLL, watch.GRACE = 0.05, 0.3
    children = [subprocess.Popen(SLEEP) for _ in range(2)]
    (place / "pids").write_text(" ".join(str(child.pid) for child in children))
    os.dup2(os.open(place / "said", os.O_CREAT | os.O_WRONLY), 2)
    sys.stderr = os.fdopen(2, "w")
    watch.watch(children)
    children[1].send_signal(signal.SIGSTOP)
    children[0].send_signal(first)
    time.sleep(60)


def test_one_killed_ends_all_the_stopped_one_too(tmp_path):
    """Also a process that waits where no backend can tell it."""
    one = multiprocessing.get_context("fork").Process(target=looking_after, args=(tmp_path, signal.SIGKILL))
    one.start()
    one.join(20)
    assert one.exitcode == 1
    assert (tmp_path / "said").read_text().startswith("error: process 1 was ended by SIGKILL; all end here, ")
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        assert gone(pid)


def gone(pid):
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_stopped_process_is_known():
    one = subprocess.Popen(SLEEP)
    assert not stopped(one.pid)
    one.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 5
    while not stopped(one.pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert stopped(one.pid)
    one.kill()
    one.wait()
    assert not stopped(one.pid)
