"""A run that was killed and went on: at W&B too each step stands once, in one run, that of its folder."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from test_training import LIGHT, ROOT, command, train_here
from wandb_server import offline, rows_of, serving

from anysigma.report.results import Result, Row
from anysigma.runs.checkpoint import read
from anysigma.training.loggers import MetricsCSV, numbers
from anysigma.training.loggers_wandb import Wandb
from anysigma.training.wandb_files import last_step, steps_of

# W&B writes at once, not every 15 s, so that a kill comes after it: what is repeated later is there already.
AT_ONCE = {"WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.1"}
# Starts of one run: from, to, and whether it is killed then. The second repeats steps.
STARTS = [(0, 30, True), (10, 40, False)]
RUN = """
import os, sys, time
from pathlib import Path
from anysigma.training.loggers import MetricsCSV
from anysigma.training.loggers_wandb import Wandb

folder, begin, end, killed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
loggers = MetricsCSV(folder, {}), Wandb(folder, {"seed": 0}, patience=10)
for logger in loggers:
    logger.cut_back(begin)
for step in range(begin + 1, end + 1):
    for logger in loggers:
        logger.log_metrics({"train/loss": 1 / step}, step)
        if step % 5 == 0:
            logger.log_metrics({"held_out/loss": 2 / step}, step)
if killed:
    time.sleep(120)
loggers[1].finish(0)
"""


def start(folder, *words, arrived=lambda: -1, **environment):
    """A start of the run in `folder`; one that is to be killed is, once its last rows have `arrived` (the highest step)."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), *map(str, words)], env={**os.environ, **AT_ONCE, **environment},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while words[-1] and arrived() < words[1] - 1:  # the last row waits for the next one
        assert process.poll() is None
        time.sleep(0.1)
    if words[-1]:
        process.kill()
    said, _ = process.communicate()
    assert process.returncode == (-signal.SIGKILL if words[-1] else 0) and not said


def highest(rows):
    return max((row["_step"] for row in rows), default=-1)


def on_disk(folder):
    """The highest step in the files of a run that goes on."""
    return max((s for path in folder.glob("wandb/offline-run-*/*.wandb") for s in steps_of(path.read_bytes())), default=-1)


def by_step(rows):
    """step → its figures; a step that stands twice is an error."""
    rows = list(rows)
    steps = Counter(row["trainer/global_step"] for row in rows)
    assert set(steps.values()) <= {1}, [step for step, n in steps.items() if n > 1]
    assert all(row["_step"] == row["trainer/global_step"] for row in rows)
    return {row["trainer/global_step"]: {k: v for k, v in row.items() if "loss" in k} for row in rows}


def local(folder):
    """The same of metrics.csv, in which a (step, metric) that stands twice is an error."""
    found = {}
    for step, name, value in numbers(folder / "metrics.csv"):
        assert name not in found.setdefault(step, {})
        found[step][name] = value
    return {step: {k: v for k, v in row.items() if "loss" in k} for step, row in found.items()}


RESULT = Result("fidelity", rows=[Row("fd", 1.0)], pictures={"grid": np.zeros((4, 4, 3), np.uint8)})
WHOLE = {s: {"train/loss": 1 / s, **({"held_out/loss": 2 / s} if s % 5 == 0 else {})} for s in range(1, 41)}


@pytest.mark.slow
def test_offline_each_step_stands_once_when_the_folders_are_read_together(tmp_path):
    for words in STARTS:
        start(tmp_path, *words, arrived=lambda: on_disk(tmp_path), WANDB_MODE="offline")
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    own = json.loads((tmp_path / "wandb.json").read_text())["id"]
    assert len(folders) == 2 and all(folder.name.endswith(own) for folder in folders)
    assert rows_of(folders[0])[-1]["_step"] == 29  # the second start had something to repeat
    assert by_step(offline(tmp_path)) == local(tmp_path) == WHOLE


@pytest.mark.slow
def test_online_each_step_stands_once_on_the_server(tmp_path):
    with serving() as server:
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        for words in STARTS:
            start(tmp_path, *words, arrived=lambda: highest(row for rows in server.rows.values() for row in rows), **online)
    assert len(server.rows) == 1 and by_step(next(iter(server.rows.values()))) == local(tmp_path) == WHOLE


@pytest.mark.slow
def test_a_server_that_was_down_for_one_start_gets_its_figures_with_the_next(tmp_path):
    with serving() as server:
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        start(tmp_path, 0, 10, False, **online)
        start(tmp_path, 10, 20, False, WANDB_MODE="offline")
        start(tmp_path, 20, 40, False, **online)
    assert by_step(next(iter(server.rows.values()))) == WHOLE


@pytest.mark.slow
def test_a_copy_has_a_run_of_its_own_and_in_it_all_figures(tmp_path):
    start(tmp_path / "a", 0, 20, False, WANDB_MODE="offline")
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    start(tmp_path / "b", 20, 40, False, WANDB_MODE="offline")
    own = json.loads((tmp_path / "b/wandb.json").read_text())["id"]
    (folder,) = (tmp_path / "b/wandb").glob(f"offline-run-*{own}")
    assert by_step(rows_of(folder)) == WHOLE and own not in {p.name[-16:] for p in (tmp_path / "a/wandb").iterdir()}


def read_run(folder):
    """The W&B ids that a run's folder, its checkpoint and its offline files say."""
    files = {path.name[-16:] for path in (folder / "wandb").glob("offline-run-*")}
    return (
        json.loads((folder / "wandb.json").read_text())["id"],
        read(folder / "checkpoints/last.ckpt")["wandb"]["id"],
        files,
    )


def test_training_keeps_the_id_in_the_checkpoint_and_a_renamed_folder_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    words = ["features=none", "trainer.log_every_n_steps=1", *LIGHT]
    train_here(tmp_path / "a", "logger=wandb", "trainer.max_steps=3", *words)
    first = read_run(tmp_path / "a")
    assert first[0] == first[1] and first[2] == {first[0]}
    shutil.move(tmp_path / "a", tmp_path / "b")
    train_here(tmp_path / "b", "trainer.max_steps=4", *words)  # without W&B: it is not forgotten
    assert read_run(tmp_path / "b") == first
    (tmp_path / "b/wandb.json").unlink()
    train_here(tmp_path / "b", "logger=wandb", "trainer.max_steps=6", *words)
    assert read_run(tmp_path / "b") == first
    assert list(by_step(row for row in offline(tmp_path / "b") if "train/loss" in row)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_run_that_begins_with_anothers_weights_draws_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    words = ["debug=true", "logger=wandb", "features=none", "trainer.max_steps=2", *LIGHT]
    command("train.py", *words, "run=a", cwd=tmp_path)
    command("train.py", *words, "run=b", "init=a", cwd=tmp_path)
    a, b = (read_run(tmp_path / "logs/train" / run) for run in "ab")
    assert a[0] != b[0] and a[2] == {a[0]} and b[2] == {b[0]} == {b[1]}


@pytest.mark.slow
def test_a_training_that_is_killed_and_goes_on_has_each_step_once(tmp_path):
    words = ["debug=true", "run=cut", "features=none", "trainer.log_every_n_steps=1", "callbacks.last.every=5", *LIGHT]
    environment = {**os.environ, **AT_ONCE, "WANDB_MODE": "offline"}
    folder, command_line = tmp_path / "logs/train/cut", [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(
        [*command_line, "trainer.max_steps=100000"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL
    )
    while not list(folder.glob("checkpoints/last.ckpt")) or read(folder / "checkpoints/last.ckpt")["step"] < 30:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    step = read(folder / "checkpoints/last.ckpt")["step"]
    command("train.py", *words, f"trainer.max_steps={step + 20}", cwd=tmp_path, **environment)
    found = by_step(row for row in offline(folder) if "train/loss" in row)
    assert sorted(found) == list(range(1, step + 21))
    assert {s: row["train/loss"] for s, row in found.items()} == {s: r["train/loss"] for s, r in local(folder).items()}


@pytest.mark.slow
def test_two_processes_are_one_wandb_run(tmp_path):
    words = ["hardware=cpu", "hardware.devices=2", "debug=true", "run=two", "features=none", "trainer.max_steps=3", *LIGHT]
    command("train.py", *words, cwd=tmp_path, WANDB_MODE="offline")
    own, kept, files = read_run(tmp_path / "logs/train/two")
    assert own == kept and files == {own}


def test_evaluations_on_two_machines_do_not_meet(tmp_path):
    """One config, one run's name, two places: the W&B runs are two."""
    ids = set()
    for place in ("one", "two"):
        folder = tmp_path / place / "logs/evaluate/digits/table-0a1b2c3d"
        logger = Wandb(folder, {}, mode="offline")
        ids.add(logger.version)
        logger.finish(0)
        again = Wandb(folder, {}, mode="offline")
        assert again.version == logger.version
        again.finish(0)
    assert len(ids) == 2 and all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """An offline run whose file has several blocks, and a row that is longer than one."""
    folder = tmp_path_factory.mktemp("long")
    logger = Wandb(folder, {}, mode="offline")
    for step in range(1, 400):
        logger.log_metrics({f"metric/{k}": step / (k + 1) for k in range(2000 if step == 200 else 8)}, step)
    logger.finish(0)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    os.utime(file, (0, 0))  # long ago
    return folder, file, logger.version


def test_the_highest_step_of_a_file_is_found_across_its_blocks(long):
    folder, file, own = long
    assert file.stat().st_size > 3 * 32768
    assert last_step(folder, own) == 399 == max(row["_step"] for row in rows_of(file.parent))
    assert last_step(folder, "0" * 16) == -1  # another's files


def test_a_file_that_was_cut_or_damaged_gives_what_comes_before(long, tmp_path):
    _, file, own = long
    content = file.read_bytes()
    place = tmp_path / "wandb" / file.parent.name / file.name
    place.parent.mkdir(parents=True)
    found = []
    for end in [0, 3, 7, 10, *range(1000, len(content), 9973)]:
        place.write_bytes(content[:end])
        os.utime(place, (0, 0))
        found.append(last_step(tmp_path, own))
    assert found == sorted(found) and found[0] == -1 and found[-1] > 300 and len(set(found)) > 5
    damaged = bytearray(content)
    damaged[len(content) // 2 : len(content) // 2 + 64] = bytes(range(64))
    place.write_bytes(damaged)
    os.utime(place, (0, 0))
    assert found[3] <= last_step(tmp_path, own) <= 399  # and nothing is raised


def test_cutting_back_tells_wandb_nothing_of_what_comes_again(tmp_path):
    """Of metrics.csv W&B is told up to the checkpoint's step, whatever order the loggers are in."""
    record = MetricsCSV(tmp_path, {})
    for step in (1, 2, 3, 4):
        record.log_metrics({"a": step}, step)
    logger = Wandb(tmp_path, {}, mode="offline")
    logger.cut_back(2)
    logger.log_metrics({"a": 30.0}, 3)
    logger.finish(0)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    assert [(row["_step"], row["a"]) for row in rows_of(folder)] == [(1, 1), (2, 2), (3, 30)]


def test_final_figures_that_failed_and_are_measured_again_arrive(tmp_path):
    for begin, code in ((0, 1), (3, 0)):
        logger = Wandb(tmp_path, {}, mode="offline")
        logger.cut_back(begin, final=begin == 0)
        for step in range(begin + 1, 4):
            logger.log_metrics({"a": float(step)}, step)
        if code == 0:
            for result in (RESULT, RESULT):  # two studies' worth
                logger.log_metrics({"final/fd": 1.0}, 3)
                logger.log_final(result, 3)
        logger.finish(code)
    rows = offline(tmp_path)
    assert [row["a"] for row in rows if "a" in row] == [1, 2, 3]
    (final,) = [row for row in rows if "final/fd" in row]
    assert final["trainer/global_step"] == 3 and final["final/table.nrows"] == 2 and final["final/grid.width"] == 4
