"""One process in a run's folder: its holder is named, and a killed one holds nothing."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anysigma.runs import lock
from anysigma.runs.lock import HOLDER, named

HOLDS = """
import sys
from pathlib import Path
from anysigma.runs.lock import hold
try:
    hold(Path(sys.argv[1]))
except ValueError as error:
    sys.exit(str(error))
print("held", flush=True)
sys.stdin.read()
"""


def holding(folder, **more):
    return subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def test_a_second_process_is_refused_with_the_holders_name_and_a_killed_one_is_followed(tmp_path):
    first = holding(tmp_path / "run")
    assert first.stdout.readline() == "held\n"
    _, said = holding(tmp_path / "run").communicate()
    name = rf"process {first.pid} on \S+, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.search(rf"run is held by {name}; run=NAME starts another", said) and said.count("\n") == 1
    first.kill()
    first.wait()
    assert (tmp_path / "run" / HOLDER).exists()  # it could clear nothing away
    third = holding(tmp_path / "run")
    assert third.stdout.readline() == "held\n"
    assert str(third.pid) in (tmp_path / "run" / HOLDER).read_text()
    third.communicate("")
    assert not (tmp_path / "run" / HOLDER).exists() and third.returncode == 0


def test_the_other_ranks_of_the_group_that_holds_it_come_in(tmp_path):
    first = holding(tmp_path / "run")
    assert first.stdout.readline() == "held\n"
    said, _ = holding(tmp_path / "run", env={**os.environ, "LOCAL_RANK": "1"}).communicate("")
    assert said == "held\n"
    first.communicate("")


def test_training_in_a_held_folder_ends_in_one_line_before_anything_is_built(tmp_path):
    first = holding(tmp_path / "logs/train/x")
    assert first.stdout.readline() == "held\n"
    train = [sys.executable, str(Path(__file__).parents[2] / "train.py"), "run=x", "debug=true"]
    done = subprocess.run(train, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL)
    first.communicate("")
    assert done.returncode == 2 and done.stderr.startswith(f"error: logs/train/x is held by process {first.pid} on ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "logs/train/x/metrics.csv").exists()


def test_a_process_that_holds_it_may_ask_again(tmp_path):
    code = HOLDS.replace("print(", "hold(Path(sys.argv[1]))\nprint(")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, input="")
    assert done.stdout == "held\n"


@pytest.mark.parametrize("content", [None, b"", b"\x1b[2J\n", b"\xff\xfe"])
def test_a_holder_that_says_nothing_is_another_process(tmp_path, content):
    path = tmp_path / HOLDER
    if content is not None:
        path.write_bytes(content)
    assert named(path) == "another process" or content == b"\xff\xfe"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch, capsys, number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.FileLock, "acquire", refused)
    lock.hold(tmp_path / "run")
    assert "this file system knows no locks" in capsys.readouterr().out


def test_another_failure_is_not_taken_for_that(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.FileLock, "acquire", refused)
    with pytest.raises(OSError, match="Permission denied"):
        lock.hold(tmp_path / "run")
