"""Machines that share no disk: two processes, each in a working folder of its own, decide alike, or say why not."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_ddp import QUICK
from test_training import LIGHT, ROOT, train_here

from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.runs.checkpoint import read
from anysigma.runs.identity import identity
from anysigma.training.job import Facts

WORDS = [*QUICK, *LIGHT, "hardware=ddp", "hardware.accelerator=cpu", "hardware.timeout=60"]
LACKS = (
    "processes do not agree on the step that is saved: {} on process 0, {} on process 1; every machine needs the same files"
    " and the same command: a shared disk, or a copy of the run's folder"
)
LAST = "logs/train/two/checkpoints/last.ckpt"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def on_two_machines(place, *words):
    """train.py as torchrun starts it on two machines; (code, output, errors) of each."""
    port, running = free_port(), []
    for rank in (0, 1):
        cwd = place / f"machine-{rank}"
        cwd.mkdir(exist_ok=True)
        said = {"RANK": rank, "GROUP_RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
        line = [sys.executable, str(ROOT / "train.py"), *WORDS, "debug=true", "logger=csv", "run=two", *words]
        environment = {**os.environ, **{name: str(value) for name, value in said.items()}}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(line, cwd=cwd, env=environment, **pipes))
    found = [one.communicate(timeout=90) for one in running]
    return [(one.returncode, *said) for one, said in zip(running, found, strict=True)]


@pytest.mark.slow
def test_a_run_is_made_on_both_measured_once_and_goes_on_only_where_both_have_it(tmp_path):
    """The first one's files reach the other at the end; one that lost them is refused, by both, in one line."""
    first, second = on_two_machines(tmp_path, "trainer.max_steps=4")
    assert (first[0], second[0]) == (0, 0), (first, second)
    one, other = (tmp_path / f"machine-{rank}" for rank in (0, 1))
    assert (one / LAST).read_bytes() == (other / LAST).read_bytes()
    (found,) = one.glob("logs/evaluate/two/*/results.json")
    assert not list(other.rglob("results.json")) and json.loads(found.read_text())["step"] == 4
    shutil.rmtree(other / "logs/train/two/checkpoints")
    first, second = on_two_machines(tmp_path, "trainer.max_steps=6")
    assert (first[0], second[0]) == (2, 2) and "going on" not in first[1] + second[1]
    assert first[2].splitlines()[-1] == f"error: {LACKS.format(4, 0)}"
    assert "error" not in second[2] and "Traceback" not in first[2] + second[2]  # the line is said once
    assert read(one / LAST)["step"] == 4


def test_those_that_no_store_tells_compare_when_they_meet(tmp_path):
    folders = [tmp_path / f"machine-{rank}" for rank in (0, 1)]
    for folder in folders:
        folder.mkdir()
    train_here(folders[0], *QUICK, *LIGHT, "trainer.max_steps=3")
    port, fork = free_port(), multiprocessing.get_context("fork").Process
    members = [fork(target=member, args=(rank, port, folder)) for rank, folder in enumerate(folders)]
    for one in members:
        one.start()
    for one in members:
        one.join(60)
    assert [one.exitcode for one in members] == [0, 2]  # 0: it found the line to be right
    assert read(folders[0] / "checkpoints/last.ckpt")["step"] == 3 and not list(folders[1].rglob("*.ckpt"))


def member(rank, port, folder):
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = [*WORDS, "hardware.devices=2", "debug=true", "logger=csv", "~callbacks.progress", "trainer.max_steps=8"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", words))
    torch.manual_seed(node["seed"])
    facts = Facts({name: value for name, value in node.items() if name != "job"}, identity(node))
    with pytest.raises(ValueError) as refused:
        build(node["job"]).run(folder, facts)
    assert str(refused.value) == LACKS.format(3, 0)
