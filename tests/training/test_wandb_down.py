"""W&B down, slow, absent, or gone in the middle: the run goes on, ends as it would, and lacks no figure."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from test_training import train_here
from wandb_server import rows_of, serving

from anysigma.report.results import Result, Row
from anysigma.training import loggers_wandb
from anysigma.training.loggers import MetricsCSV, numbers
from anysigma.training.loggers_wandb import Wandb
from anysigma.training.wandb_run import WandbRun

STEPS, CODE = 20, 3
RUN = """
import os, signal, sys
from pathlib import Path
import numpy as np
from anysigma.training import loggers_wandb, wandb_run
from anysigma.training.loggers import MetricsCSV

def service(number):
    from wandb.sdk import wandb_setup
    os.kill(wandb_setup.singleton()._connection._proc._process.pid, number)

wandb_run.ANSWER, loggers_wandb.START, loggers_wandb.HURRY = 2, 0.5, 3
folder, half, steps, code = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
loggers = MetricsCSV(folder, {}), loggers_wandb.Wandb(folder, {"seed": 0}, patience=float(sys.argv[5]))
for logger in loggers:
    logger.cut_back(0)
for step in range(1, steps + 1):
    for logger in loggers:
        logger.log_metrics({"train/loss": 1 / step}, step)
    loggers[1].log_image("samples/grid", [np.zeros((4, 4, 3), np.uint8)], step)
    if step == steps // 2:
        loggers[1]._aside.wait(10)
        print("half", flush=True)
        exec(half)
loggers[1].finish(code)
print("end", flush=True)
sys.exit(code)
"""


def run(folder, url, half="", at_half=lambda: None, patience=3):
    """A run whose W&B is at `url`; what it said. It must end by itself, with its own exit code, its figures whole."""
    environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
    words = [sys.executable, "-c", RUN, str(folder), half, str(STEPS), str(CODE), str(patience)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, env=environment, cwd=folder.parent, text=True, **pipes)
    said = []
    for line in iter(process.stdout.readline, "end\n"):
        assert line, said
        said.append(line)
        if line == "half\n":
            at_half()
            process.stdin.write("\n")
            process.stdin.flush()
    assert process.wait(20) == CODE
    assert list(numbers(folder / "metrics.csv")) == [(step, "train/loss", 1 / step) for step in range(1, STEPS + 1)]
    return [line for line in said if line != "half\n"]


@pytest.fixture
def refused():
    """A port at which nobody listens."""
    with serving() as server:
        url = server.url
    return url


@pytest.mark.slow
def test_with_a_server_that_works_nothing_is_said_and_it_has_every_row(tmp_path):
    with serving() as server:
        assert run(tmp_path / "a", server.url, patience=60) == []
    (rows,) = server.rows.values()
    assert [(row["_step"], row["train/loss"]) for row in rows] == [(step, 1 / step) for step in range(1, STEPS + 1)]


# Packets that nobody answers, and a name that nobody knows.
NOWHERE = {"blackhole": "http://10.255.255.1:8080", "nameless": "http://wandb.invalid"}
SELDOM = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("broken", *NOWHERE)]


@pytest.mark.parametrize("mode", ["refused", pytest.param("silent", marks=pytest.mark.slow), *SELDOM])
def test_a_server_that_is_down_at_the_start_costs_one_line_and_the_run_is_kept_offline(tmp_path, mode, refused):
    with serving(mode) as server:
        (line,) = run(tmp_path / "a", {**NOWHERE, "refused": refused}.get(mode, server.url))
    assert line.startswith("W&B cannot be reached (") and line.endswith("): this run is kept offline\n")
    (offline,) = (tmp_path / "a/wandb").glob("offline-run-*")
    assert [(row["_step"], row["train/loss"]) for row in rows_of(offline)] == [(s, 1 / s) for s in range(1, STEPS + 1)]
    assert all(row["samples/grid.count"] == 1 for row in rows_of(offline))


@pytest.mark.parametrize("mode", ["silent", pytest.param("broken", marks=pytest.mark.slow)])
def test_a_server_that_goes_down_in_the_middle_costs_one_line_and_its_files_hold_the_rest(tmp_path, mode):
    with serving() as server:
        (line,) = run(tmp_path / "a", server.url, "sys.stdin.readline()", lambda: setattr(server, "mode", mode))
    (own,) = (tmp_path / "a/wandb").glob("run-*")
    assert line.startswith(f"W&B is left alone: 3 s were too short, `wandb sync a/wandb/{own.name}` sends the rest"), line
    assert [row["_step"] for row in rows_of(own)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", ["KILL", pytest.param("STOP", marks=pytest.mark.slow)])
def test_a_service_process_that_dies_or_hangs_in_the_middle_costs_one_line(tmp_path, number):
    with serving() as server:
        (line,) = run(tmp_path / "a", server.url, f"service(signal.SIG{number})")
    assert line.startswith("W&B is left alone: ") and line.endswith("; figures are in a\n")


def test_an_answer_that_no_server_gives_costs_one_line(tmp_path):
    """W&B's service dies of it."""
    with serving("nonsense") as server:
        (line,) = run(tmp_path / "a", server.url)
    assert line.startswith("W&B ")


class Fake:
    """A W&B run of which one call raises."""

    starting_step = 0

    def __init__(self, broken=""):
        self.broken, self.calls = broken, []
        self.summary = SimpleNamespace(update=lambda values: self.called("summary"))

    def called(self, name):
        self.calls.append(name)
        if name == self.broken:
            raise RuntimeError(f"{name} is broken\nand more of it")

    def __getattr__(self, name):
        return lambda *_, **__: self.called(name)


def begins(monkeypatch, fake):
    monkeypatch.setattr(WandbRun, "_begin", lambda self: setattr(self, "_run", fake))


@pytest.mark.parametrize("call", ["define_metric", "log", "summary", "finish"])
def test_a_call_that_raises_costs_one_line_once_and_then_wandb_is_left_alone(tmp_path, monkeypatch, capsys, call):
    fake = Fake(call)
    begins(monkeypatch, fake)
    logger = Wandb(tmp_path / "a", {}, mode="offline")
    for step in range(1, 10):
        logger.log_metrics({"a": 1.0}, step)
        logger.log_image("b", [np.zeros((2, 2, 3), np.uint8)], step)
        logger.log_final(Result("fidelity", rows=[Row("fd", 1.0)]), step)
    logger.finish(0)
    said = capsys.readouterr().out
    assert said == f"W&B is left alone: {call} is broken; figures are in {tmp_path / 'a'}\n"
    assert fake.calls.count(call) == 1 and fake.calls[-1] == "finish"  # it is closed all the same
    logger.finish(0)  # and once more is nothing


def test_a_picture_that_wandb_cannot_take_costs_wandb_and_not_the_run(tmp_path, monkeypatch, capsys):
    begins(monkeypatch, Fake())
    logger = Wandb(tmp_path / "a", {}, mode="offline")
    logger.log_image("b", ["no picture"], 1)
    logger.finish(0)
    assert capsys.readouterr().out.startswith("W&B is left alone: ")


def test_without_wandb_a_whole_run_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    train_here(tmp_path / "a", "logger=wandb", "features=none", "trainer.max_steps=5")
    said = [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]
    assert said == [f"W&B is left alone: it is not installed (pip install wandb); figures are in {tmp_path / 'a'}"]
    assert {name for _, name, _ in numbers(tmp_path / "a/metrics.csv")} >= {"train/loss", "train/lr"}


@pytest.mark.parametrize(("word", "mode"), [("WANDB_MODE", None), ("logger.wandb.mode", "sometimes")])
def test_a_mode_that_is_none_is_refused_before_anything_is_made(tmp_path, monkeypatch, word, mode):
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ValueError, match=f"{word}=sometimes: online, offline or disabled"):
        Wandb(tmp_path / "a", {}, mode=mode)
    assert not (tmp_path / "a").exists()


def test_disabled_starts_nothing(tmp_path, monkeypatch):
    begins(monkeypatch, None)
    logger = Wandb(tmp_path / "a", {}, mode="disabled")
    logger.log_metrics({"a": 1.0}, 1)
    logger.finish(0)
    assert not (tmp_path / "a").exists()


def test_beside_the_first_process_nothing_is_drawn_or_started(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers_wandb, "is_first", lambda: False)
    logger = Wandb(tmp_path / "a", {}, mode="offline")
    assert logger.record is None and not (tmp_path / "a").exists()


def test_a_run_that_was_told_to_stop_gives_wandb_less_time(tmp_path, monkeypatch, capsys):
    fake = Fake()
    begins(monkeypatch, fake)
    monkeypatch.setattr(loggers_wandb, "HURRY", 0.2)
    fake.finish = lambda **_: __import__("time").sleep(5)
    logger = Wandb(tmp_path / "a", {}, mode="offline", patience=100)
    logger.finish(143)
    assert "it did not end within 0 s" in capsys.readouterr().out


def test_the_key_of_ones_own_server_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine wandb.example.org login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert not loggers_wandb.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert loggers_wandb.has_key()


def test_metrics_csv_needs_no_wandb(tmp_path):
    MetricsCSV(tmp_path, {}).log_metrics({"a": 1.0}, 1)
    assert json.dumps(list(numbers(tmp_path / "metrics.csv"))) == '[[1, "a", 1.0]]'
