"""Signals of a process: what the first does, what a second may do, and whose they are."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from anysigma.compose.cli import one_line_errors
from anysigma.machine import signals
from anysigma.machine.signals import ASKING, SIGNALS, Stopped

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


def forked(act):
    """`act` in a process of its own; returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join(20)
    assert process.exitcode is not None
    return process.exitcode


def held(*numbers, pause=0.0):
    """A process that holds its signals, gets these with a pause between, and ends with the first's code."""

    def act():
        with SIGNALS.held():
            for number in numbers:
                signal.raise_signal(number)
                time.sleep(pause)
        os._exit(128 + SIGNALS.number)

    return forked(act)


@pytest.mark.parametrize("number", ASKING)
def test_where_nothing_is_held_a_signal_ends_the_process_in_one_line(number, capfd):
    def act():
        with SIGNALS.heard(), one_line_errors():
            os.kill(os.getpid(), number)
            time.sleep(10)

    assert forked(act) == 128 + number
    said, errors = capfd.readouterr()
    assert errors == "stopped; the same command goes on from what is saved\n" and said == ""


def test_other_ranks_end_without_a_word(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    def act():
        with SIGNALS.heard(), one_line_errors():
            signal.raise_signal(TERM)

    assert forked(act) == 143 and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("number", ASKING)
def test_what_is_held_notes_the_first(number):
    assert held(number) == 128 + number


@pytest.mark.parametrize("pair", [(TERM, TERM), (TERM, USR1), (USR1, TERM), (USR1, USR1), (INT, TERM), (INT, USR1)])
def test_no_second_one_of_a_scheduler_acts(pair, monkeypatch):
    """USR1 before the time limit and TERM at it; INT and TERM before KILL: what is saved until KILL comes is won."""
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    assert held(*pair, pair[1], pause=0.01) == 128 + pair[0]


@pytest.mark.parametrize("first", ASKING)
def test_a_second_ctrl_c_ends_at_once(first, monkeypatch):
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    assert held(first, INT, pause=0.01) == -INT


def test_what_comes_together_is_one(monkeypatch):
    """`timeout` and torchrun send what the terminal sent too; torchrun also later, and then kills by itself."""
    assert held(INT, INT, INT) == 130
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert held(INT, INT, pause=0.01) == 130


def test_an_ignored_one_stays_ignored_and_a_handled_USR1_is_its_handlers():
    """nohup and `&` in scripts; submitit, that requeues by itself."""
    heard = []

    def act():
        signal.signal(INT, signal.SIG_IGN)
        signal.signal(USR1, lambda *_: heard.append("theirs"))
        with SIGNALS.held():
            for number in (INT, USR1):
                signal.raise_signal(number)
            assert SIGNALS.number is None and heard == ["theirs"]
            signal.raise_signal(TERM)
        os._exit(SIGNALS.number)

    assert forked(act) == TERM


def test_others_are_never_touched():
    """submitit's USR2 among them."""
    others = [number for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} if number not in ASKING]
    before = {number: signal.getsignal(number) for number in others}
    with SIGNALS.held():
        assert {number: signal.getsignal(number) for number in others} == before


def test_they_are_given_back_also_after_an_error():
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(ZeroDivisionError), SIGNALS.held():
        assert all(signal.getsignal(number) == SIGNALS._hear for number in ASKING)
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in ASKING] == before


def test_a_fork_of_a_process_that_holds_them_can_be_ended():
    def act():
        with SIGNALS.held():
            os._exit(forked(lambda: os.kill(os.getpid(), TERM)) == -TERM)

    assert forked(act) == 1


def test_what_a_process_has_started_ends_with_it():
    """The children of Lightning's launcher, where the parent alone is told."""

    def act():
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"])
        with SIGNALS.heard():
            SIGNALS.children = lambda: [child]
            try:
                signal.raise_signal(TERM)
            except Stopped as stop:
                os._exit(child.wait() == -TERM and stop.number == TERM)

    assert forked(act) == 1


# Something that goes when Python has given its handlers back, and takes a signal with it.
ENDING = """
from anysigma.machine.signals import SIGNALS
import os

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        print("late", kill(pid, 15), kill(pid, 10))

late = Late()
with SIGNALS.heard():
    pass
"""


def test_a_command_that_is_done_does_not_die_of_a_late_one():
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "late None None\n", done.stderr
