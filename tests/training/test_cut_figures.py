"""Final figures that were cut go on in the process group, each rank its share, from the shards."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from test_ddp import QUICK, TWO
from test_training import LIGHT, ROOT, train_here

from anysigma.compose.checks import check_train
from anysigma.evaluation.final import final_figures
from anysigma.runs.listing import RUNS
from anysigma.studies import generated

WORDS = [*QUICK[1:], *LIGHT, "trainer.max_steps=2"]  # with features
BLOCKS = [f"{b:06d}" for b in range(14)]  # two sets of 70 images, ten at once


def both(place, cut):
    """The final figures of the run `first`, on two processes; where `cut`, both are killed when rank 0 has made 3 blocks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork").Process
    members = [fork(target=member, args=(rank, port, place, cut)) for rank in (0, 1)]
    for one in members:
        one.start()
    members[0].join(60)
    if cut:
        members[1].kill()
    members[1].join(60)
    made = [(place / f"rank-{rank}").read_text().split() for rank in (0, 1)]
    for rank in (0, 1):
        (place / f"rank-{rank}").unlink()
    return [one.exitcode for one in members], made


def member(rank, port, place, cut):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(place)
    write, made = generated._write, []

    def noted(path, images):
        write(path, images)
        made.append(path.stem)
        (place / f"rank-{rank}").write_text("\n".join(made))
        if cut and rank == 0 and len(made) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    generated._write = noted
    (place / f"rank-{rank}").touch()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        words = [*TWO, *WORDS, "debug=true", "logger=csv", "study.block=10", "hardware.timeout=30"]
        node = check_train(compose("train", words))
    code = final_figures(RUNS / "first", node, "fidelity", {}, {"command": "c", "versions": {}})
    os._exit(code)


def measured():
    """(metric, value, its sets) of every row of the run's figures."""
    (path,) = Path.cwd().glob("logs/evaluate/first/*/results.json")
    return [(row["metric"], row["value"], row["sets"]) for row in json.loads(path.read_text())["rows"]]


def test_what_all_had_made_stays_and_each_makes_its_share_of_the_rest(tmp_path, monkeypatch):
    """And the figures are those of one process that was never cut."""
    monkeypatch.chdir(tmp_path)
    train_here(RUNS / "first", *WORDS)
    shutil.copytree(RUNS, tmp_path / "alone" / RUNS)
    codes, before = both(tmp_path, cut=True)
    assert codes == [-signal.SIGKILL] * 2 and not list(tmp_path.rglob("results.json"))
    assert before[0] == BLOCKS[0:6:2]
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    assert {path.stem for path in shards} >= {*before[0], *before[1]} and len(shards) < 14
    codes, made = both(tmp_path, cut=False)
    assert codes == [0, 0] and all(path.stat().st_mtime_ns == at for path, at in shards.items())
    assert made[0] == BLOCKS[6::2] and all(int(b) % 2 for b in made[1])
    assert sorted([*(path.stem for path in shards), *made[0], *made[1]]) == BLOCKS  # none twice
    pointer = json.loads((RUNS / "first/results.json").read_text())
    assert pointer["step"] == 2 and pointer["lines"][0].startswith("fd_digits ")
    assert not list(tmp_path.rglob("*.part"))
    found = measured()
    monkeypatch.chdir(tmp_path / "alone")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", [*WORDS, "debug=true", "logger=csv", "study.block=10"]))
    final_figures(RUNS / "first", node, "fidelity", {}, {"command": "c", "versions": {}})
    for (metric, value, sets), (other, theirs, their_sets) in zip(found, measured(), strict=True):
        assert metric == other and sets == pytest.approx(their_sets, rel=1e-6)
        assert value is theirs is None or value == pytest.approx(theirs, rel=1e-6)
