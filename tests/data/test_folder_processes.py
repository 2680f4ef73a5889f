"""A cold cache and several processes: one decodes, the others wait, and nobody waits for the dead."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from anysigma.data import folder
from anysigma.data.folder import ImageFolder
from anysigma.machine.distributed import is_first, one_at_a_time, say

N = 12

# Decodes slowly and counts; starts when the file `go` is there, so that processes meet.
WORKER = """
import hashlib, sys, time
from pathlib import Path
from anysigma.data import folder

place, seconds, error = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
decode = folder.decode

def counted(path, *rest):
    with (place / "decoded").open("a") as file:
        file.write(f"{path.name}\\n")
    time.sleep(seconds)
    if error == path.name:
        raise ValueError("bad")
    return decode(path, *rest)

folder.decode = counted
(place / f"ready{sys.argv[4]}").touch()
while not (place / "go").exists():
    time.sleep(0.01)
source = folder.ImageFolder(str(place / "images"), (3, 8, 8), cache=str(place / "cache"))
print("sha", hashlib.sha256(source.train.numpy().tobytes() + source.held_out.numpy().tobytes()).hexdigest())
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "images").mkdir()
    for k in range(N):
        array = np.random.default_rng(k).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / "images" / f"{k:02d}.png")
    return tmp_path


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def started(place, count, seconds=0.02, error="none", ranks=(0, 1)):
    """`count` processes that have met just before the first look at the cache; ranks are known as torchrun says them."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(place), str(seconds), error, str(i)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "RANK": str(ranks[i])},
        )
        for i in range(count)
    ]  # fmt: skip
    until(lambda: len(list(place.glob("ready*"))) == count)
    (place / "go").touch()
    return processes


def ended(processes):
    return [(*process.communicate(timeout=60), process.returncode) for process in processes]


def decoded(place):
    return (place / "decoded").read_text().split()


def cached(place):
    return sorted(path.name for path in (place / "cache").iterdir())


def test_of_two_processes_one_decodes_and_both_read_the_same(place):
    (one, _, first), (two, _, second) = ended(started(place, 2))
    assert (first, second) == (0, 0)
    assert sorted(decoded(place)) == [f"{k:02d}.png" for k in range(N)]  # each once
    assert one.splitlines()[-1] == two.splitlines()[-1] and one.splitlines()[-1].startswith("sha ")
    name, lock = cached(place)
    assert name.startswith("folder-") and "." not in name and lock == f"{name}.lock"  # no half is left


def test_where_the_decoding_process_dies_another_takes_over(place):
    processes = started(place, 2, seconds=0.1, ranks=(0, 0))
    until(lambda: (place / "decoded").exists() and len(decoded(place)) >= 3)
    (aside,) = (place / "cache").glob("*.part")
    dying, living = sorted(processes, key=lambda process: f".{process.pid}." not in aside.name)
    dying.send_signal(signal.SIGKILL)
    ((out, error, code),) = ended([living])
    assert dying.wait(60) == -signal.SIGKILL and code == 0, error
    assert "another process decodes these images, waiting for it" in out and "sha " in out
    assert len(decoded(place)) >= N + 3


def test_an_interrupt_ends_the_decoding_and_leaves_nothing_behind(place):
    (process,) = started(place, 1, seconds=0.2)
    until(lambda: (place / "decoded").exists() and len(decoded(place)) >= 2)
    process.send_signal(signal.SIGINT)
    ((_, error, code),) = ended([process])
    assert code != 0 and "KeyboardInterrupt" in error
    assert len(decoded(place)) < N and [name for name in cached(place) if not name.endswith(".lock")] == []


def test_a_lock_that_the_dead_left_behind_holds_nobody(tmp_path, capsys):
    lock = tmp_path / "lock"
    lock.touch()  # as after a power cut
    with one_at_a_time(lock, "waiting"):
        pass
    assert capsys.readouterr().out == ""


def test_a_bad_image_is_said_by_all_and_nobody_hangs(place):
    for _, error, code in ended(started(place, 2, error="07.png")):
        assert code == 1 and "07.png: bad; data.source.on_error=skip leaves such files out" in error
    assert [name for name in cached(place) if not name.endswith(".lock")] == []


def test_a_whole_cache_asks_for_no_lock(place, monkeypatch):
    made = ImageFolder(str(place / "images"), (3, 8, 8), cache=str(place / "cache")).train
    monkeypatch.setattr(folder, "one_at_a_time", None)
    assert torch.equal(ImageFolder(str(place / "images"), (3, 8, 8), cache=str(place / "cache")).train, made)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True), ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True), ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False), ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False), ({"SLURM_PROCID": "3"}, False), ({"SLURM_PROCID": "0"}, True),
    ],
)  # fmt: skip
def test_the_first_rank_is_known_before_processes_meet(environment, first, monkeypatch, capsys):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    say("once")
    assert is_first() == first and capsys.readouterr().out == ("once\n" if first else "")
