"""Runs that are told to stop: whenever it comes, whoever is told, however often; and runs whose time is up."""

import contextlib
import importlib
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from test_processes import TORCHRUN
from test_training import ROOT, same_weights, train_here

from anysigma.machine import signals
from anysigma.machine.signals import ASKING, SIGNALS
from anysigma.machine.slurm import queued_again
from anysigma.runs.checkpoint import read
from anysigma.training.callbacks import last
from anysigma.training.callbacks.last import Asking, Last
from anysigma.training.module import DiffusionModule

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
WORDS = [
    "data=rings", "model=mlp", "debug=true", "logger=csv", "run=a", "~callbacks.progress", "~callbacks.distance",
    "~callbacks.grid", "~callbacks.held_out", "~callbacks.best", "data.batch_size=32",
]  # fmt: skip
ENDLESS = "trainer.max_steps=100000"
LINE = "stopped; the same command goes on from what is saved\n"


class Started:
    """train.py, or another program, in a fork of this process, so that its imports and what is patched are the child's."""

    def __init__(self, place, *words, environment=None, name="0", program="train"):
        self.out, self.err = place / f"out-{name}", place / f"err-{name}"
        self.out.write_text("")  # no word of a run before
        fork = multiprocessing.get_context("fork").Process
        self._process = fork(target=self._run, args=(program, place, words, environment or {}))
        self._process.start()

    def _run(self, program, place, words, environment):
        os.chdir(place)
        os.environ |= environment
        sys.argv, sys.path = [f"{program}.py", *words], [str(ROOT), *sys.path]
        for number, stream, path in ((1, "stdout", self.out), (2, "stderr", self.err)):
            file = open(path, "w")  # noqa: SIM115  as long as the process lives
            os.dup2(file.fileno(), number)
            setattr(sys, stream, file)
        from anysigma.compose.cli import entry

        main = importlib.import_module(program).main
        with SIGNALS.heard(), queued_again():
            entry(main, f"{ROOT}/conf/{program}")

    def send(self, number):
        os.kill(self._process.pid, number)

    def code(self):
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
            raise AssertionError(f"it hangs: {self.out.read_text()[-500:]}{self.err.read_text()[-2000:]}")
        return self._process.exitcode


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def saved(place):
    return read(place / "logs/train/a/checkpoints/last.ckpt")


@pytest.fixture
def no_figures(monkeypatch):
    """Runs end with their training."""
    monkeypatch.setattr("anysigma.evaluation.final.final_figures", lambda *_: 0)


# --- before training, while it goes on, after it ---------------------------------------------------------------------


def waits_in(monkeypatch, where, here):
    """Let the function `where` say that it has been reached, and take long."""

    def slow(*_, **__):
        here.touch()
        time.sleep(60)

    monkeypatch.setattr(where, slow)


BEFORE = {
    "composing": "train.check_train",
    "decoding": "anysigma.data.datamodule.ImageDataModule.setup",
    "the trial": "anysigma.training.job.settle",
}


@pytest.mark.parametrize("program", ["train.py", "evaluate.py"])
def test_ctrl_c_while_torch_is_imported_leaves_no_trace(program, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / program), "data=rings"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until(lambda: "libtorch" in Path(f"/proc/{process.pid}/maps").read_text())
    process.send_signal(INT)
    assert process.communicate(timeout=30)[1] in ("", LINE) and process.returncode in (-INT, 130)


@pytest.mark.parametrize("phase, number", list(zip(BEFORE, ASKING, strict=True)))
def test_before_training_there_is_nothing_to_lose(phase, number, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    waits_in(monkeypatch, BEFORE[phase], tmp_path / "here")
    run = Started(tmp_path, *WORDS)
    until((tmp_path / "here").exists)
    run.send(number)
    assert run.code() == 128 + number and run.err.read_text() == LINE
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", ASKING)
def test_between_the_start_and_the_first_step_it_takes_that_step_and_saves(number, tmp_path, monkeypatch):
    start = Last.on_train_start

    def told(self, trainer, module):
        os.kill(os.getpid(), number)
        start(self, trainer, module)

    monkeypatch.setattr(Last, "on_train_start", told)
    run = Started(tmp_path, *WORDS)
    assert run.code() == 128 + number and saved(tmp_path)["step"] == 1 and run.err.read_text() == ""
    assert run.out.read_text().count("stopped at step 1 and saved; the same command goes on from there") == 1


def test_while_the_final_figures_are_made_nothing_is_lost(tmp_path, monkeypatch):
    """The first block of images lies there and is taken by the same command."""
    from anysigma.studies import generated

    write = generated._write

    def one(path, images):
        write(path, images)
        if not (tmp_path / "here").exists():
            (tmp_path / "here").touch()
            time.sleep(60)

    monkeypatch.setattr(generated, "_write", one)
    words = [
        *WORDS,
        "data=digits",
        "model=unet",
        "model.channels=8",
        "model.multipliers=[1]",
        "sampler.steps=2",
        "sampler/tau=trailing",
    ]
    run = Started(tmp_path, *words)
    until((tmp_path / "here").exists)
    trained, shards = saved(tmp_path), list(tmp_path.rglob("shards/**/*.npy"))
    made = [path.stat().st_mtime_ns for path in shards]
    run.send(TERM)
    assert run.code() == 143 and run.err.read_text() == LINE
    assert len(shards) == 1 and same_weights(trained, saved(tmp_path)) and trained["step"] == 20
    again = Started(tmp_path, *words)
    assert again.code() == 0 and "going on" not in again.out.read_text(), again.err.read_text()
    assert [path.stat().st_mtime_ns for path in shards] == made and list(tmp_path.rglob("results.json"))


def test_a_signal_after_the_last_step_is_heard(tmp_path, monkeypatch):
    """Between the last save and the final figures: the run is whole, its code says that it was stopped."""
    fit = Trainer.fit

    def told(*rest, **others):
        fit(*rest, **others)
        os.kill(os.getpid(), TERM)

    monkeypatch.setattr(Trainer, "fit", told)
    run = Started(tmp_path, *WORDS)
    assert run.code() == 143 and "stopped at step 20 and saved" in run.out.read_text() and run.err.read_text() == ""
    assert saved(tmp_path)["step"] == 20


def test_an_evaluation_ends_in_one_line(tmp_path, no_figures, monkeypatch):
    assert Started(tmp_path, *WORDS).code() == 0
    waits_in(monkeypatch, "anysigma.evaluation.job.Evaluation.run", tmp_path / "here")
    run = Started(tmp_path, "checkpoint=a", "study=schedule", "logger=csv", program="evaluate")
    until((tmp_path / "here").exists)
    run.send(TERM)
    assert run.code() == 143 and run.err.read_text() == LINE


# --- at any moment, twice and more -----------------------------------------------------------------------------------


def harassed(run, draw):
    """Send signals to a run at moments drawn at random, a first and up to three more."""
    time.sleep(draw.uniform(0, 0.4))
    for _ in range(draw.randint(1, 4)):
        with contextlib.suppress(ProcessLookupError):
            run.send(draw.choice(ASKING))
        time.sleep(draw.choice((0, draw.uniform(0, 0.02))))


@pytest.mark.parametrize("times", [10, pytest.param(60, marks=pytest.mark.slow)])
def test_signals_at_any_moment_leave_a_run_that_goes_on_bit_for_bit(times, tmp_path, no_figures, monkeypatch):
    """It saves at every step, so that many moments lie within a save; a second Ctrl-C ends it there."""
    monkeypatch.setattr(signals, "TOGETHER", 0.0)
    draw, codes, path = random.Random(0), [], tmp_path / "logs/train/a/checkpoints/last.ckpt"
    for _ in range(times):
        before = read(path)["step"] if path.exists() else 0
        run = Started(tmp_path, *WORDS, ENDLESS, "callbacks.last.every=1")
        until(lambda run=run: "M parameters" in run.out.read_text())
        harassed(run, draw)
        codes.append(run.code())
        assert codes[-1] in (130, 143, 138, -INT) and (not path.exists() or read(path)["step"] >= before)
    assert 0 < codes.count(-INT) < times  # both ways to end are met
    step = saved(tmp_path)["step"]
    (tmp_path / "whole").mkdir()
    assert Started(tmp_path / "whole", *WORDS, f"trainer.max_steps={step}").code() == 0
    assert step > times and same_weights(saved(tmp_path), saved(tmp_path / "whole"))


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def pair(place, *words, environments=({"LOCAL_RANK": "0", "NODE_RANK": "0"}, {"LOCAL_RANK": "1", "NODE_RANK": "0"})):
    """Two ranks of one run, told who they are as a launcher tells."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port())}
    words = [*WORDS, "hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", *words]
    return [Started(place, *words, environment={**meet, **told}, name=str(i)) for i, told in enumerate(environments)]


def test_whoever_is_told_both_stop_at_one_step_and_go_on_bit_for_bit(tmp_path, no_figures):
    """Rank 0, rank 1, or both with one signal or two, at moments drawn at random."""
    draw, told = random.Random(1), [(0,), (1,), (0, 1), (1, 0)]
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole").mkdir()
    metrics = tmp_path / "cut/logs/train/a/metrics.csv"
    for turn in range(8):
        size = metrics.stat().st_size if metrics.exists() else 0
        ranks = pair(tmp_path / "cut", ENDLESS, "callbacks.last.every=1000")
        until(lambda size=size: metrics.exists() and metrics.stat().st_size > size)
        time.sleep(draw.uniform(0, 0.1))
        number = draw.choice(ASKING)
        for rank in told[turn % len(told)]:
            ranks[rank].send(number)
        assert [rank.code() for rank in ranks] == [128 + number] * 2
        said = "".join(rank.out.read_text() for rank in ranks)
        assert said.count("stopped at step") == 1
    step = saved(tmp_path / "cut")["step"]
    ranks = pair(tmp_path / "whole", f"trainer.max_steps={step}")
    assert [rank.code() for rank in ranks] == [0, 0], ranks[0].err.read_text()
    assert same_weights(saved(tmp_path / "cut"), saved(tmp_path / "whole"))


def test_of_two_signals_to_two_ranks_all_take_the_same(tmp_path):
    ranks = pair(tmp_path, ENDLESS)
    until((tmp_path / "logs/train/a/metrics.csv").exists)
    ranks[0].send(INT)
    ranks[1].send(INT)
    ranks[1].send(TERM)
    assert [rank.code() for rank in ranks] in ([130, 130], [143, 143])


def test_nobody_leaves_before_rank_0_has_done_what_it_alone_does(tmp_path, monkeypatch):
    """Launchers end the others when one has gone: Lightning's, torchrun, srun --kill-on-bad-exit."""

    def slow(code):
        if os.environ["LOCAL_RANK"] == "0":
            time.sleep(1)
            (tmp_path / "asked").touch()

    monkeypatch.setattr("anysigma.training.ending.requeue", slow)
    ranks = pair(tmp_path, ENDLESS)
    until((tmp_path / "logs/train/a/metrics.csv").exists)
    ranks[1].send(USR1)
    assert ranks[1].code() == 138 and (tmp_path / "asked").exists() and ranks[0].code() == 138


@pytest.mark.parametrize(
    "number", [TERM, pytest.param(INT, marks=pytest.mark.slow), pytest.param(USR1, marks=pytest.mark.slow)]
)
def test_the_launcher_torchrun_passes_a_signal_on(number, tmp_path):
    words = [*WORDS, "hardware=cpu", ENDLESS, "callbacks.last.every=100000"]
    handled = "--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    line = [sys.executable, *TORCHRUN, handled, str(ROOT / "train.py"), *words]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        until(lambda: (tmp_path / "logs/train/a/metrics.csv").exists() or process.poll() is not None)
        os.killpg(process.pid, number)  # as a terminal and Slurm send it; torchrun's workers are in sessions of their own
        process.wait(60)
    step, text = saved(tmp_path)["step"], (tmp_path / "said").read_text()
    assert text.count(f"stopped at step {step} and saved") == 1, text[-3000:]


# train.py whose final figures take long; every process notes its number.
WAITING = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import train
from anysigma.compose.cli import entry
from anysigma.evaluation import final
from anysigma.machine.signals import SIGNALS

def measure(*_):
    open(f"pid-{{os.environ.get('LOCAL_RANK', 0)}}", "w").write(str(os.getpid()))
    time.sleep(60)

final.measure = measure
with SIGNALS.heard():
    entry(train.main, {str(ROOT / "conf/train")!r})
"""


@pytest.mark.slow
def test_the_parent_alone_told_during_the_final_figures_takes_its_children_with_it(tmp_path):
    """Lightning's launcher: nobody else would end them."""
    (tmp_path / "waiting.py").write_text(WAITING)
    line = [sys.executable, "waiting.py", *WORDS, "hardware=cpu", "hardware.devices=2"]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(line, cwd=tmp_path, stdout=said, stderr=said)
        pids = [tmp_path / "pid-0", tmp_path / "pid-1"]
        until(lambda: all(path.exists() and path.read_text() for path in pids) or process.poll() is not None)
        process.send_signal(TERM)
        assert process.wait(30) == 143
    until(lambda: not alive(int(pids[1].read_text())), 10)
    assert (tmp_path / "said").read_text().count(LINE) == 1 and saved(tmp_path)["step"] == 20


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- time ------------------------------------------------------------------------------------------------------------


def test_three_chained_jobs_end_where_one_would(tmp_path, monkeypatch):
    """By a clock that is one second on whenever it is read: the first two are out of time, the third is done."""
    uncut = train_here(tmp_path / "whole", *WORDS[:4])
    clock = iter(range(10**6))
    monkeypatch.setattr(last.time, "monotonic", lambda: next(clock))
    steps = [train_here(tmp_path / "cut", *WORDS[:4], "trainer.max_time=00:00:00:08")["step"] for _ in range(3)]
    assert steps == [8, 16, 20]
    assert same_weights(uncut, read(tmp_path / "cut/checkpoints/last.ckpt"))


def test_whosever_time_is_up_both_stop_at_one_step(tmp_path, monkeypatch):
    """The second rank's clock alone runs."""
    begin = Last.on_train_start

    def started(self, trainer, module):
        begin(self, trainer, module)
        self._end = time.monotonic() if trainer.global_rank == 1 else float("inf")

    monkeypatch.setattr(Last, "on_train_start", started)
    ranks = pair(tmp_path, "trainer.max_time=00:00:10:00")
    assert [rank.code() for rank in ranks] == [0, 0] and saved(tmp_path)["step"] == 2  # told at 1, both know at 2
    assert "time is up at step 2 and saved" in ranks[0].out.read_text()


def test_a_signal_outranks_the_time(monkeypatch):
    callback = Last(1)
    callback._end = 0.0
    assert callback._reason == last.TIME_IS_UP and callback._stops(callback._reason) and callback.stopped_by is None
    monkeypatch.setattr(SIGNALS, "number", INT)
    assert callback._reason == INT > last.TIME_IS_UP and callback._stops(callback._reason) and callback.stopped_by == INT


# --- Lightning's own ways --------------------------------------------------------------------------------------------


def test_no_step_waits_to_hear_of_a_signal_or_of_the_time(tmp_path, no_figures, monkeypatch):
    """Lightning broadcasts for the one and for the other; what is left are the sums of gradients and the flag's."""
    asked, step = [], DiffusionModule.training_step

    def counted(self, x_0, i):
        (tmp_path / f"broadcasts-{self.global_rank}").write_text(str(len(asked)) if i >= 2 else "0")
        if i == 2:
            monkeypatch.setattr(torch.distributed, "broadcast", lambda *a, **b: asked.append(1))
            monkeypatch.setattr(torch.distributed, "broadcast_object_list", lambda *a, **b: asked.append(1))
        return step(self, x_0, i)

    monkeypatch.setattr(DiffusionModule, "training_step", counted)
    words = ["trainer.max_steps=12", "trainer.max_time=00:01:00:00", "trainer.log_every_n_steps=100", "~callbacks.rates"]
    for rank in pair(tmp_path, *words):
        rank.code()
    assert [(tmp_path / f"broadcasts-{rank}").read_text() for rank in (0, 1)] == ["0", "0"]


def test_what_is_turned_off_is_there():
    """A new Lightning that calls it otherwise would do it again, unseen."""
    trainer = Trainer(logger=False, enable_checkpointing=False, max_time="00:00:00:01", barebones=False, accelerator="cpu")
    assert callable(trainer._signal_connector.register_signal_handlers)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)
    assert callable(trainer._checkpoint_connector._parse_ckpt_path)
    assert [type(c) for c in trainer.callbacks].count(Timer) == 1


def test_one_process_is_asked_at_once():
    assert Asking(1).said(TERM) == TERM and Asking(1).at_the_end(None) is None
