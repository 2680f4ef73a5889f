"""Several processes on one choice of hardware, one count of threads and one last step."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_ddp import QUICK, TWO
from test_training import LIGHT, ROOT, train_here

from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.machine import threads
from anysigma.machine.choice import SAID
from anysigma.runs.checkpoint import read
from anysigma.runs.identity import identity
from anysigma.training.callbacks import switches
from anysigma.training.job import Facts
from anysigma.training.module import DiffusionModule

WORDS = [*TWO, *QUICK, *LIGHT, "debug=true", "logger=csv"]
FOUND = {"training": {"precision": "bf16-mixed", "memory_format": "channels_last", "fused": True},
         "sampling": {"precision": "32-true", "memory_format": "contiguous"}, "gains": [2.0, 1.0]}  # fmt: skip

# train.py on a machine where nobody else works and a trial takes no time; every process notes what it was told at its
# start, whether it tried, and what it trains with.
NOTING = f"""
import json, os, sys
sys.path.insert(0, {str(ROOT)!r})
import train
from anysigma.compose.cli import entry
from anysigma.machine import choice
from anysigma.training.module import DiffusionModule
from anysigma.training.rehearsal import Rehearsal

told, step, tried = os.environ.get(choice.SAID), DiffusionModule.training_step, []
choice.FIRST = 0.0
choice.Load = type("Quiet", (), {{"others": lambda self: 0.0}})

def once(self):
    tried.append(1)
    return {FOUND}

def noted(self, x_0, i):
    note = {{"told": told, "tried": len(tried), "precision": self.trainer.precision, "fused": self.fused}}
    open(f"rank-{{self.global_rank}}.json", "w").write(json.dumps(note))
    return step(self, x_0, i)

Rehearsal._try, DiffusionModule.training_step = once, noted
entry(train.main, {str(ROOT / "conf/train")!r})
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize("launcher", [[], TORCHRUN], ids=["Lightning's launcher", "torchrun"])
def test_one_process_tries_and_all_train_with_what_it_found(launcher, tmp_path):
    """A child of Lightning's launcher is told by its parent; processes that torchrun starts meet twice at one address."""
    (tmp_path / "noting.py").write_text(NOTING)
    environment = {name: value for name, value in os.environ.items() if name != SAID}
    line = [sys.executable, *launcher, "noting.py", *WORDS, "run=two", "trainer.max_steps=2"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "error: " not in done.stderr, done.stderr[-2000:]
    notes = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [note["tried"] for note in notes] == [1, 0] and done.stdout.count("hardware=auto: training bf16-mixed") == 1
    assert [(note["precision"], note["fused"]) for note in notes] == [("bf16-mixed", True)] * 2
    assert notes[0]["told"] is None and (notes[1]["told"] is None) == bool(launcher)
    record = read(tmp_path / "logs/train/two/checkpoints/last.ckpt")["config"]["hardware"]
    assert record["precision"] == "bf16-mixed" and record["sampling"] == FOUND["sampling"]


# --- two processes forked from this one ----------------------------------------------------------------------------


def two(folder, *words, patience=(60, 60)):
    """A run of two processes, forked so that imports and what is patched are theirs; returns their exit codes.

    None of one that does not end in its seconds of `patience`, the second's after the first has ended: it is killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork").Process
    members = [fork(target=member, args=(rank, port, folder, [*WORDS, "~callbacks.progress", *words])) for rank in (0, 1)]
    for one in members:
        one.start()
    for one, seconds in zip(members, patience, strict=True):
        one.join(seconds)
    codes = [one.exitcode for one in members]
    for one in members:
        one.kill()
    return codes


def member(rank, port, folder, words):
    """As a launcher tells a process who it is; ends with the run's code."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", words))
    torch.manual_seed(node["seed"])
    facts = Facts({name: value for name, value in node.items() if name != "job"}, identity(node))
    sys.exit(build(node["job"]).run(folder, facts).code)


@pytest.fixture
def noted(monkeypatch, tmp_path):
    """A way to have something done in every micro-step, and to read what each rank's steps wrote down."""
    step = DiffusionModule.training_step

    def also(act):
        def training_step(self, x_0, i):
            line = act(self, i)
            with open(tmp_path / f"rank-{self.global_rank}", "a") as file:
                file.write(f"{line}\n")
            return step(self, x_0, i)

        monkeypatch.setattr(DiffusionModule, "training_step", training_step)

    return also, lambda: [(tmp_path / f"rank-{rank}").read_text().split() for rank in (0, 1)]


@pytest.mark.parametrize("micro_steps, at, stops", [(1, 5, 7), (2, 5, 4), (1, 7, 8)], ids=["", "micro-steps", "at the end"])
def test_a_signal_to_one_process_stops_all_at_one_step(noted, tmp_path, micro_steps, at, stops):
    """Told during step k, they stop after step k + 1, or where the run ends; the file goes on."""
    also, ranks = noted

    def act(module, i):
        if module.global_rank == 1 and i == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return module.global_step

    also(act)
    words = [f"trainer.accumulate_grad_batches={micro_steps}", "trainer.log_every_n_steps=100"]
    codes = two(tmp_path, *words, "trainer.max_steps=8")
    assert codes == [128 + signal.SIGTERM] * 2
    assert ranks() == [[str(i // micro_steps) for i in range(stops * micro_steps)]] * 2
    assert read(tmp_path / "checkpoints/last.ckpt")["step"] == stops
    assert train_here(tmp_path, *QUICK, *LIGHT, "trainer.max_steps=10")["step"] == 10


class Told:
    """Of the first process's cores two are taken for a while; the second would say something else."""

    known, said = True, [0.0, 2.0, 0.0]

    def __init__(self, own=None):
        self.said = [9.0] if os.environ.get("LOCAL_RANK") == "1" else list(self.said)

    def others(self):
        return self.said.pop(0) if len(self.said) > 1 else self.said[0]


def test_the_first_process_decides_the_threads_of_all_when_figures_are_logged(noted, tmp_path, monkeypatch):
    also, ranks = noted
    said = [1]  # threads in name alone: four that compute on two cores wait for each other
    monkeypatch.setattr(torch, "set_num_threads", lambda n: said.append(n))
    monkeypatch.setattr(torch, "get_num_threads", lambda: said[-1])
    also(lambda module, i: torch.get_num_threads())
    monkeypatch.setattr(switches, "Load", Told)
    monkeypatch.setattr(threads, "FIRST", 0.0)
    monkeypatch.setattr(threads, "affinity", lambda: {0, 1, 2, 3})
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert two(tmp_path, "hardware.threads=0", "trainer.log_every_n_steps=3", "trainer.max_steps=12") == [0, 0]
    assert ranks() == [["2"] * 3 + ["1"] * 6 + ["2"] * 3] * 2
    assert switches.read(tmp_path / "threads.csv") == [(0, 2), (3, 1), (9, 2)]
