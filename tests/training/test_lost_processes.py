"""A process that dies or hangs ends the others with it, in one line, and what was saved goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_ddp import QUICK
from test_processes import TORCHRUN, WORDS, two
from test_training import LIGHT, ROOT, train_here

from anysigma.runs.checkpoint import read
from anysigma.training.module import DiffusionModule

# train.py, whose processes note who they are, and which looks and speaks sooner than it would.
NOTING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train
from anysigma.compose.cli import entry
from anysigma.machine import watch
from anysigma.training.module import DiffusionModule

watch.TURN, watch.GRACE = 3.0, 5.0
step = DiffusionModule.training_step

def noted(self, x_0, i):
    open(f"rank-{{self.global_rank}}", "w").write(f"{{os.getpid()}} {{self.global_step}}")
    return step(self, x_0, i)

DiffusionModule.training_step = noted
entry(train.main, {str(ROOT / "conf/train")!r})
"""
ENDLESS = ["run=two", "trainer.max_steps=100000", "callbacks.last.every=5", "hardware.timeout=20", "hardware.threads=1"]


def broken(place, launcher, rank, number):
    """Two processes that train for ever, until one gets a signal at step 12 or later; (code, output, seconds to the end)."""
    (place / "noting.py").write_text(NOTING)
    line = [sys.executable, *launcher, "noting.py", *WORDS, *ENDLESS]
    done = subprocess.Popen(line, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        pids = [at_step_12(place / f"rank-{one}", done) for one in (0, 1)]
        begun = time.monotonic()
        os.kill(pids[rank], number)
        said, _ = done.communicate(timeout=60)
        seconds = time.monotonic() - begun
        while any(alive(pid) for pid in pids):
            assert time.monotonic() - begun < 60, "a process was left behind"
            time.sleep(0.1)
    finally:
        done.kill()
    return done.returncode, said, seconds


def at_step_12(path, run):
    """The process that wrote the note, once it has come so far."""
    until = time.monotonic() + 90
    while time.monotonic() < until and run.poll() is None:
        words = path.read_text().split() if path.exists() else []
        if len(words) == 2 and int(words[1]) >= 12:
            return int(words[0])
        time.sleep(0.1)
    run.kill()
    raise AssertionError(f"{path.name} did not come so far: {run.communicate()[0]}")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def ours(said):
    return [line for line in said.splitlines() if line.startswith("error: ")]


LINE = "error: {}; all end here, the same command goes on from what is saved"
SILENT = "another process did not answer within hardware.timeout"
CASES = {
    "the second is killed": (1, signal.SIGKILL, "process 1 was ended by SIGKILL"),
    "the first is killed": (0, signal.SIGKILL, "the process that started this one has ended"),
    "the second hangs": (1, signal.SIGSTOP, SILENT),
    "the first hangs": (0, signal.SIGSTOP, SILENT),
}


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case != "the second is killed"]


@pytest.mark.parametrize("case", ["the second is killed", *SLOW])
def test_all_end_in_one_line_and_the_run_goes_on(case, tmp_path):
    rank, number, line = CASES[case]
    code, said, seconds = broken(tmp_path, [], rank, number)
    assert code != 0 and seconds < 60 and ours(said) == [LINE.format(line)], said
    assert "Traceback" not in said
    saved = read(tmp_path / "logs/train/two/checkpoints/last.ckpt")["step"]
    assert saved >= 10 and saved % 5 == 0
    assert train_here(tmp_path / "logs/train/two", *QUICK, *LIGHT, f"trainer.max_steps={saved + 2}")["step"] == saved + 2


@pytest.mark.slow
def test_under_torchrun_they_end_too(tmp_path):
    """It names the one that was killed itself, and ends the others, sometimes before they have seen it."""
    code, said, seconds = broken(tmp_path, TORCHRUN, 1, signal.SIGKILL)
    assert code != 0 and seconds < 60 and len(ours(said)) <= 1 and "Signal 9 (SIGKILL)" in said, said
    assert read(tmp_path / "logs/train/two/checkpoints/last.ckpt")["step"] >= 10


def test_one_that_hangs_is_waited_for_as_long_as_hardware_timeout_says(tmp_path, monkeypatch):
    """Forked, so that it is quick: the other ends with what the backend says, and what was saved can be loaded."""
    step = DiffusionModule.training_step

    def stopping(self, x_0, i):
        if self.global_rank == 1 and i == 7:
            os.kill(os.getpid(), signal.SIGSTOP)
        return step(self, x_0, i)

    monkeypatch.setattr(DiffusionModule, "training_step", stopping)
    begun = time.monotonic()
    codes = two(tmp_path, "hardware.timeout=4", "callbacks.last.every=2", "trainer.max_steps=1000", patience=(30, 1))
    assert codes == [1, None] and time.monotonic() - begun < 45
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == 6
