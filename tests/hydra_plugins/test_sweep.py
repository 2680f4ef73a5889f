"""Sweeps: a process and a folder a job, some at a time; failures are counted; a stopped one goes on."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anysigma.machine.choice import SAID, TRIAL
from anysigma.runs.checkpoint import read
from hydra_plugins.anysigma_sweep._jobs import Job, environment, noted, run
from hydra_plugins.anysigma_sweep._trials import try_first

ROOT = Path(__file__).parents[2]


def sweep(script, *words, cwd, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), "-m", *words], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip


def processes(word):
    """Those of this machine with the word in their command."""
    return [line for line in subprocess.check_output(["ps", "-eo", "args"], text=True).splitlines() if word in line]


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def job(folder, code, number=1, needs=None):
    command = [sys.executable, "-c", code]
    return Job(number, 9, f"seed={number}", folder / str(number), command, str(folder / ".submitit/%j"), needs)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which a sweep of two runs was made, of which one had to fail, and what was said."""
    place = tmp_path_factory.mktemp("place")
    process = sweep(
        "train.py", "hydra.launcher.at_once=2", "model.channels=16,17", "debug=true", "logger=csv", "trainer.max_steps=2",
        cwd=place,
    )  # fmt: skip
    said, errors = process.communicate(timeout=120)
    return place, said.splitlines(), errors, process.returncode


def test_a_failed_job_leaves_the_other_with_its_result_and_is_counted(place):
    folder, said, errors, code = place
    (made,) = (folder / "logs/train").iterdir()
    assert sorted(p.name[:8] for p in made.iterdir()) == [".submiti", "digits-u", "digits-u", "multirun"]
    (result,) = made.glob("*/results.json")
    assert f"1/2 model.channels=16  → {result.parent.relative_to(folder)}" in said
    assert any(line.startswith("1/2 model.channels=16  fd_digits ") for line in said)
    reason = "a timestep embedding needs an even width of at least 4, got 17"
    assert f"2/2 model.channels=17  failed: {reason}" in said and said[-1] == "2 jobs, 1 failed" and code == 1
    (log,) = made.glob(".submitit/2/*.err")
    assert errors.splitlines() == [f"  2/2 model.channels=17: {reason}", f"    its log: {log.relative_to(folder)}"]
    assert [p.name for p in folder.iterdir()] == ["logs"]


def test_evaluations_too_have_a_folder_a_job(place):
    folder = place[0]
    (result,) = (folder / "logs/train").glob("*/*/results.json")
    run = f"checkpoint={result.parent.relative_to(folder / 'logs/train')}"
    words = [run, "hydra.launcher.at_once=2", "sampler.eta=0,1", "sampler.steps=2", "debug=true", "logger=csv"]
    process = sweep("evaluate.py", *words, cwd=folder)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and said.splitlines()[-1] == "2 jobs, 0 failed", said + errors
    (made,) = {path.parent for path in (folder / "logs/evaluate").glob("*/.submitit")}
    assert len(list(made.rglob("results.json"))) == 2 and len(list(made.glob(".submitit/*"))) == 2


def test_a_stopped_sweep_leaves_nothing_running_and_the_same_command_goes_on(tmp_path):
    name = f"sweep-{os.getpid()}"
    words = ["seed=0,1", "data=rings", "model=mlp", "debug=true", "logger=csv", "trainer.max_steps=100"]
    first = sweep("train.py", *words, cwd=tmp_path, ANYSIGMA_SWEEP=name)
    runs = tmp_path / "logs/train" / name
    until(lambda: first.poll() is not None or len(list(runs.glob("*/metrics.csv"))) == 2)
    os.killpg(first.pid, signal.SIGINT)  # Ctrl-C
    said, errors = first.communicate(timeout=60)
    assert first.returncode == 130 and said.splitlines()[-1] == "2/2 seed=1  stopped and saved", said + errors
    assert "1/2 seed=0  finished at step 100" in said and "stopped with 1 of 2 jobs done; the same command" in errors
    assert len(list(runs.glob("*/results.json"))) == 1 and processes(name) == []
    again = sweep("train.py", *words, cwd=tmp_path, ANYSIGMA_SWEEP=name)
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0 and said.splitlines()[-1] == "2 jobs, 0 failed", said + errors
    assert said.count("finished at step 100") == 2 and len(list(runs.glob("*/results.json"))) == 2
    assert "going on from step" in (runs / ".submitit/2/2_0_log.out").read_text()


REFUSED = [
    (
        ["seed=0", "sampler=ddim,ddpm"],
        "one trained network serves them all; train once, then python evaluate.py -m checkpoint=<run> sampler=ddim,ddpm",
    ),
    (["sampler.bogus=1"], "unknown key sampler.bogus"),
    (["run=one"], "seed=0 and seed=1 would share a folder, logs/train/s/one"),
    (["hydra.launcher.at_once=0"], "hydra.launcher.at_once=0: at least 1 job"),
    (["hydra.launcher.at_once=all"], "could not be converted to Integer"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_bad_words_stop_a_sweep_before_any_job(tmp_path, words, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *([] if "seed=0" in words else ["seed=0,1"]), *words])
    for name, value in {"HYDRA_FULL_ERROR": "0", "ANYSIGMA_SWEEP": "s", "MPLCONFIGDIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    from anysigma.compose.cli import entry

    with pytest.raises(SystemExit) as ended:
        entry(importlib.import_module("train").main, f"{ROOT}/conf/train")
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and message in error and "\n" not in error, error
    assert not list(tmp_path.glob("logs/train/*/.submitit"))


def test_as_many_jobs_run_as_are_asked_for_and_the_next_starts_when_one_ends(tmp_path, capsys):
    wait = "import os, time; print(len(os.listdir('.')), flush=True); open({0}, 'w'); time.sleep({1}); os.remove({0})"
    place = tmp_path / "running"
    place.mkdir()
    codes = [f"import os; os.chdir({str(place)!r}); {wait.format(repr(str(n)), s)}" for n, s in enumerate((2, 0.1, 0.1))]
    jobs = [job(tmp_path, code, n) for n, code in enumerate(codes, 1)]
    run(jobs, 2, dict(os.environ), [])
    assert [one.code for one in jobs] == [0, 0, 0] and capsys.readouterr().out.splitlines()[-1] == "1/9 seed=1  done"
    beside = [int((tmp_path / f".submitit/{n}/{n}_0_log.out").read_text().split()[-1]) for n in (1, 2, 3)]
    assert max(beside) == 1  # besides itself


def test_what_a_job_started_ends_with_it_and_a_stubborn_one_is_killed(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'pass; {tmp_path.name}; 1/0']);"
    asked, one = [], job(tmp_path, f"{child}{stubborn}")
    log = tmp_path / ".submitit/1/1_0_log.out"

    class Asked(list):
        """Signals that come when the job is on: Ctrl-C three times."""

        def __len__(self):
            return 3 if log.exists() and "\non" in log.read_text() else 0

        def __bool__(self):
            return len(self) > 0

    run([one], 1, dict(os.environ), Asked())
    assert one.code == -signal.SIGKILL and not one.reason and asked == []


def test_a_job_without_a_word_says_what_ended_it(tmp_path):
    one = job(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    run([one], 1, dict(os.environ), [])
    assert one.reason == "ended by SIGKILL"


def test_jobs_share_the_cores_unless_somebody_has_shared_them_out(monkeypatch):
    monkeypatch.setattr("hydra_plugins.anysigma_sweep._jobs.cores", lambda: 8)
    assert environment(3)["OMP_NUM_THREADS"] == "1"  # conftest's
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert environment(3)["OMP_NUM_THREADS"] == "2" and environment(16)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(1)


def test_signals_are_noted_and_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with noted() as asked:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert asked == [signal.SIGTERM, signal.SIGINT] and signal.getsignal(signal.SIGTERM) == before


# train.py on a machine where nobody else works; whoever tries, and how a sweep called it, stands in `tried`.
TRYING = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import train
from anysigma.compose.cli import entry
from anysigma.machine import choice
from anysigma.training.rehearsal import Rehearsal

def trial(self):
    print(os.environ.get(choice.TRIAL), file=open("tried", "a"))
    found = {{"precision": "bf16-mixed", "memory_format": "channels_last"}}
    return {{"training": {{**found, "fused": True}}, "sampling": found, "gains": [2.0, 1.5]}}

choice.Load, choice.FIRST = type("Quiet", (), {{"others": lambda self: 0.0}}), 0.0
Rehearsal._try = trial
entry(train.main, {str(ROOT / "conf/train")!r})
"""


@pytest.mark.slow
def test_jobs_beside_each_other_compute_as_one_trial_before_them_found(tmp_path, monkeypatch):
    monkeypatch.delenv(SAID)
    (tmp_path / "trying.py").write_text(TRYING)
    words = ["seed=0,1", "hydra.launcher.at_once=2", "debug=true", "logger=csv", "trainer.max_steps=2", "data=rings"]
    words += ["model=mlp", "features=none", "sampler.steps=2"]
    process = sweep(tmp_path / "trying.py", *words, cwd=tmp_path, ANYSIGMA_SWEEP="s")
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, said + errors
    assert (tmp_path / "tried").read_text() == "only\n"  # once, by itself
    made = tmp_path / "logs/train/s"
    hardware = [read(path)["config"]["hardware"] for path in made.glob("*/checkpoints/last.ckpt")]
    assert [one["precision"] for one in hardware] == ["bf16-mixed"] * 2 and all(one["fused"] for one in hardware)
    found = "hardware=auto: training bf16-mixed channels_last fused, sampling bf16-mixed channels_last: 2.00 and 1.50"
    assert said.splitlines()[0] == "trial seed=0  by itself, before the jobs" and said.splitlines()[1].startswith(
        f"trial seed=0  {found} x as fast"
    )
    assert len(list(made.iterdir())) == 4  # two runs, .submitit, multirun.yaml: nothing of the trial's but its log
    assert sorted(path.name for path in (made / ".submitit").iterdir()) == ["1", "2", "trial-1"]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"train", "evaluate", "cache"}


def test_a_trial_for_each_need_and_one_that_fails_stops_nothing(tmp_path, monkeypatch, capsys):
    """None for a job that needs none, for a run that goes on, or where the hardware is said; plain where one found none."""
    note = f"import json, os, sys; print(json.dumps([os.environ[{TRIAL!r}], *sys.argv[1:]])); "
    ends = ["1/0", "print('hardware=auto: training x')", "2/0", "3/0", "4/0", "print('hardware=auto: the machine is busy')"]
    needed = zip(ends, ["a", "b", "a", None, "c", "d"], strict=True)
    jobs = [job(tmp_path, note + end, n, needs) for n, (end, needs) in enumerate(needed, 1)]
    (jobs[4].folder / "checkpoints").mkdir(parents=True)
    (jobs[4].folder / "checkpoints/last.ckpt").touch()
    monkeypatch.delenv(SAID)
    try_first(jobs, dict(os.environ), [])
    assert capsys.readouterr().out.splitlines()[1::2] == [
        "trial seed=1  failed, the jobs go on in plain fp32: ZeroDivisionError: division by zero",
        "trial seed=2  hardware=auto: training x", "trial seed=6  hardware=auto: the machine is busy",
    ]  # fmt: skip
    assert [one.env for one in jobs] == [{SAID: '{"tried": false}'} if n in (1, 3, 6) else {} for n in range(1, 7)]
    assert all(one.code is None for one in jobs)
    log = (tmp_path / ".submitit/trial-2/trial-2_0_log.out").read_text()
    word, place, no_hydra = json.loads(next(line for line in log.splitlines() if line.startswith('["')))
    assert word == "only" and place.startswith('hydra.run.dir="') and no_hydra == "hydra.output_subdir=null"
    try_first(jobs, {**os.environ, SAID: "{}"}, [])
    assert capsys.readouterr().out == ""
