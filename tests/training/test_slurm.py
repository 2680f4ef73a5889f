"""Slurm, of which only sbatch, srun, scontrol and sacct are seen: fakes in PATH that record what they are told."""

import os
import re
import signal
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from test_preemption import ENDLESS, LINE, WORDS, Started, no_figures, pair, saved, until, waits_in
from test_training import ROOT, same_weights

from anysigma.machine import slurm
from anysigma.machine.slurm import job_id, queued_again, refusal, requeue

__all__ = ["no_figures"]  # a fixture

USR1 = signal.SIGUSR1
SHOWN = "JobId=12 JobName=train Requeue=1 Restarts=0 BatchFlag=1 WorkDir=/home/somebody\n"
SCONTROL = """#!/bin/sh
cd {folder}
echo "scontrol $*" >> calls
case $1 in
show) cat shown;;
requeue)
    cp ../logs/train/a/checkpoints/last.ckpt at-requeue 2> /dev/null
    test ! -e refused || {{ cat refused >&2; exit 1; }};;
esac
"""
SBATCH = """#!/bin/sh
echo "sbatch $*" >> {folder}/calls
export SLURM_JOB_ID=12 SLURM_JOB_NAME=ddpm SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1 SLURM_NNODES=1 SLURM_NODEID=0
exec bash "$@"
"""
SRUN = """#!/bin/sh
echo "srun $*" >> {folder}/calls

export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_STEP_ID=0
while [ "${{1#--}}" != "$1" ]; do shift; done
exec "$@"
"""
SACCT = """#!/bin/sh
echo "sacct $*" >> {folder}/calls
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The folder with the commands, first in PATH, and `calls`."""
    folder = tmp_path / "fake"
    folder.mkdir()
    for name, text in {"scontrol": SCONTROL, "sbatch": SBATCH, "srun": SRUN, "sacct": SACCT}.items():
        (folder / name).write_text(text.format(folder=folder))
        (folder / name).chmod(0o755)
    (folder / "shown").write_text(SHOWN)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    requeue.cache_clear()  # what other tests asked is no matter
    yield folder
    requeue.cache_clear()


def calls(fake):
    return (fake / "calls").read_text().splitlines() if (fake / "calls").exists() else []


def in_job(monkeypatch, tasks=1, **more):
    """As Slurm tells a task of job 12 who it is."""
    told = {"JOB_ID": 12, "JOB_NAME": "train", "NTASKS": tasks, "NTASKS_PER_NODE": tasks, "NNODES": 1, "NODEID": 0}
    for name, value in {**told, "PROCID": 0, "LOCALID": 0, **more}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))


ASKED = ["scontrol show job --oneliner 12", "scontrol requeue 12"]


@pytest.mark.parametrize(
    ("told", "job"),
    [({}, None), ({"SLURM_JOB_ID": ""}, None), ({"SLURM_JOB_ID": "12"}, "12"),
     ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
     ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "12_0")],
)  # fmt: skip
def test_a_job_goes_by_the_name_that_scontrol_knows(fake, told, job, monkeypatch):
    """An array's task has an id of its own, which would be requeued too; the last one's is the array's, and would be all."""
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert job_id() == job


@pytest.mark.parametrize(
    ("shown", "why"),
    [(SHOWN, ""), ("JobId=12 Requeue=0 BatchFlag=1", "it was submitted with --no-requeue"), ("", ""),
     ("JobId=12 Requeue=1 BatchFlag=0", "it is no batch job"), ("Command=a=b Comment=no words", "")],
)  # fmt: skip
def test_which_jobs_stay_out(shown, why):
    assert refusal(shown) == why


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143, None, "an error"])
def test_only_usr1_asks(fake, code, monkeypatch):
    in_job(monkeypatch)
    with pytest.raises(SystemExit), queued_again():
        sys.exit(code)
    assert calls(fake) == []


def test_rank_0_alone_asks_and_once(fake, monkeypatch):
    in_job(monkeypatch, PROCID=1)
    requeue(128 + USR1)
    assert calls(fake) == []
    requeue.cache_clear()
    in_job(monkeypatch)
    requeue(128 + USR1)
    with pytest.raises(SystemExit), queued_again():
        sys.exit(128 + USR1)
    assert calls(fake) == ASKED


def test_outside_slurm_nobody_is_asked(fake):
    with pytest.raises(SystemExit), queued_again():
        sys.exit(128 + USR1)
    assert calls(fake) == []


REFUSALS = {
    "not allowed": (
        lambda fake: (fake / "shown").write_text("Requeue=0"),
        "job 12 stays out of the queue: it was submitted",
    ),
    "unknown": (lambda fake: (fake / "shown").unlink(), "job 12 could not be queued again: cat: shown: No such file"),
    "refused": (
        lambda fake: (fake / "refused").write_text("slurm_requeue error: Invalid job id specified\n"),
        "job 12 could not be queued again: slurm_requeue error: Invalid job id specified",
    ),
    "absent": (lambda fake: (fake / "scontrol").write_text("#!/no/such/shell"), "job 12 could not be queued again: "),
    "silent": (lambda fake: (fake / "scontrol").write_text("#!/bin/sh\nexec sleep 20"), "timed out after 0.3 seconds"),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_where_it_cannot_be_a_line_says_why(fake, reason, monkeypatch, capsys):
    in_job(monkeypatch)
    monkeypatch.setattr(slurm, "PATIENCE", 0.3)
    spoil, line = REFUSALS[reason]
    spoil(fake)
    with pytest.raises(SystemExit) as end, queued_again():
        sys.exit(128 + USR1)
    said = capsys.readouterr().out
    assert end.value.code == 138 and line in said.splitlines()[-1]


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_saves_then_asks_and_goes_on(fake, tmp_path, no_figures, monkeypatch):
    """Two tasks, both told. When Slurm is asked the file is there already, and it is ours: no hpc_ckpt."""
    in_job(monkeypatch, tasks=2)
    words = ["callbacks.last.every=100000"]
    metrics = tmp_path / "logs/train/a/metrics.csv"
    ranks = tasks(tmp_path, ENDLESS, *words)
    until(metrics.exists)
    for rank in ranks:
        rank.send(USR1)
    assert [rank.code() for rank in ranks] == [138, 138] and calls(fake) == ASKED
    checkpoint = tmp_path / "logs/train/a/checkpoints/last.ckpt"
    assert (fake / "at-requeue").read_bytes() == checkpoint.read_bytes()
    assert not list(tmp_path.rglob("hpc_ckpt*")) and ranks[0].out.read_text().count("asking Slurm to queue job 12") == 1
    step = saved(tmp_path)["step"]
    again = tasks(tmp_path, f"trainer.max_steps={step + 5}", *words)
    assert [rank.code() for rank in again] == [0, 0], again[0].err.read_text()
    assert f"going on from step {step}" in again[0].out.read_text() and saved(tmp_path)["step"] == step + 5
    assert calls(fake) == ASKED


def tasks(place, *words):
    """Both ranks as tasks: Slurm's words win over those of a launcher."""
    told = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in (0, 1)]
    return pair(place, *words, environments=told)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_signal_leaves_the_queue_to_slurm(fake, number, tmp_path, monkeypatch):
    """A preempted job gets SIGTERM, and Slurm requeues it by itself."""
    in_job(monkeypatch)
    run = Started(tmp_path, *WORDS, ENDLESS)
    until((tmp_path / "logs/train/a/metrics.csv").exists)
    run.send(number)
    assert run.code() == 128 + number and calls(fake) == []


def test_slurm_ends_the_job_while_it_is_asked(fake, tmp_path, monkeypatch):
    """As it does: SIGTERM comes before scontrol has returned."""
    in_job(monkeypatch)
    (fake / "scontrol").write_text(SCONTROL.format(folder=fake) + "test $1 = show || { kill -TERM $PPID; sleep 0.2; }\n")
    run = Started(tmp_path, *WORDS, ENDLESS)
    until((tmp_path / "logs/train/a/metrics.csv").exists)
    run.send(USR1)
    assert run.code() == 138 and calls(fake) == ASKED and run.err.read_text() == ""


def test_a_job_that_is_told_during_its_final_figures_is_queued_again(fake, tmp_path, monkeypatch):
    in_job(monkeypatch)
    waits_in(monkeypatch, "anysigma.evaluation.final.measure", tmp_path / "here")
    run = Started(tmp_path, *WORDS)
    until((tmp_path / "here").exists)
    run.send(USR1)
    assert run.code() == 138 and calls(fake) == ASKED and run.err.read_text() == LINE


def test_lightnings_own_file_is_never_taken_up(fake, tmp_path, no_figures, monkeypatch):
    """Under Slurm it would begin with the hpc_ckpt_N.ckpt that lies in the run's folder."""
    plain = tmp_path / "plain"
    plain.mkdir()
    assert Started(plain, *WORDS).code() == 0
    in_job(monkeypatch)
    alien = tmp_path / "logs/train/a/hpc_ckpt_7.ckpt"
    alien.parent.mkdir(parents=True)
    alien.write_bytes(b"no checkpoint of ours")
    run = Started(tmp_path, *WORDS)
    assert run.code() == 0, run.err.read_text()
    assert same_weights(saved(plain), saved(tmp_path)) and alien.read_bytes() == b"no checkpoint of ours"


def test_the_documented_script(fake, tmp_path):
    """docs/slurm.md's, by bash: every word reaches train.py, whose config they make; its code is the job's."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", (ROOT / "docs/slurm.md").read_text(), re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    (fake / "python").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {fake}/words\nexit 138\n')
    (fake / "python").chmod(0o755)
    words = ["data=rings", "model=mlp", "run=long", "sampler.tau=[1, 500]", "hardware.accelerator=cpu"]
    assert subprocess.run(["sbatch", "job.sh", *words], cwd=tmp_path, timeout=20).returncode == 138
    program, *taken = (fake / "words").read_text().splitlines()
    assert program == "train.py" and taken[-len(words) :] == words
    assert [call.split()[0] for call in calls(fake)] == ["sbatch", "srun"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [word for word in taken if "tau" not in word])
    assert (cfg.hardware.strategy, cfg.hardware.devices, cfg.hardware.num_nodes, cfg.run) == ("ddp", 1, 1, "long")
