"""The real thing: train, look, stop, go on, evaluate, on two processes."""

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from anysigma.compose import config
from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.runs.checkpoint import read
from anysigma.runs.identity import identity
from anysigma.runs.listing import reached
from anysigma.training.ending import Final
from anysigma.training.job import Facts

ROOT = Path(__file__).parents[2]
config.register()


def command(script, *words, cwd, check=True, **environment):
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *words], capture_output=True, text=True, cwd=cwd, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done


LIGHT = ("model.channels=8", "model.multipliers=[1]")  # a network that takes no time


def train_here(folder, *words, result=None):
    """A run in this process, its final figures those of `result`, or none; returns its last checkpoint."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", ["debug=true", "logger=csv", "~callbacks.progress", *words]))
    torch.manual_seed(node["seed"])
    facts = Facts({name: value for name, value in node.items() if name != "job"}, identity(node))
    if reached(folder, facts.identity) < node["trainer"]["max_steps"]:
        outcome = build(node["job"]).run(folder, facts)
        assert outcome.code == 0
        final = Final(outcome.loggers, node["trainer"]["max_steps"])
        if result is not None:
            final.log_study(result)
        final.finish(0)
    return read(folder / "checkpoints" / "last.ckpt")


def results(place, run="first"):
    """The evaluation that a run's results.json points to: its folder and content."""
    pointer = json.loads((place / f"logs/train/{run}/results.json").read_text())
    folder = place / pointer["evaluation"]
    return folder, json.loads((folder / "results.json").read_text())


def same_weights(a, b):
    return all(torch.equal(a["state_dict"][name], tensor) for name, tensor in b["state_dict"].items())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which one 20-step run, W&B and all, was made from the command line."""
    place = tmp_path_factory.mktemp("place")
    environment = {"HOME": str(place), "WANDB_API_KEY": ""}
    (place / "said").write_text(command("train.py", "debug=true", "run=first", cwd=place, **environment).stdout)
    return place


def test_a_run_ends_with_its_grid_its_distance_and_its_folder(place):
    said = (place / "said").read_text()
    assert "finished at step 20" in said and "fd_digits" in said and "real images" in said
    folder, _ = results(place)
    assert f"{folder.relative_to(place)}/grid.png" in said and "evaluate.py checkpoint=first" in said
    assert Image.open(folder / "grid.png").size[0] > 500 and said.count("fd_digits ") == 1  # said once


def test_everything_lies_below_logs(place):
    assert sorted(p.name for p in place.iterdir()) == ["logs", "said"]


def test_the_same_numbers_lie_in_csv_and_results(place):
    with open(place / "logs/train/first/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    found = {(row["metric"], row["step"]): float(row["value"]) for row in rows}
    assert len(found) == len(rows)  # nothing twice
    for metric in ("train/loss", "train/images_per_s", "train/lr", "held_out/loss", "distance/fd_digits"):
        assert (metric, "20") in found
    _, content = results(place)
    row = content["rows"][0]
    assert row["value"] == found["final/fd_digits", "20"] and row["metric"] == "fd_digits"
    assert {"study", "metric", "value", "error", "sets", "anchors", "n", "params", "better", "card"} <= row.keys()
    card = content["cards"][row["card"]]
    assert (
        card["S"] == 50 and card["step"] == 20 and card["weights"].startswith("ema") and len(card["features_sha256"]) == 64
    )


def test_the_offline_wandb_run_holds_distance_and_images(place):
    (file,) = (place / "logs/train/first/wandb").glob("offline-run-*/*.wandb")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--summary", file], capture_output=True, text=True, cwd=place)
    _, content = results(place)
    summary = dict(line.split(None, 1) for line in done.stdout.splitlines() if len(line.split(None, 1)) == 2)
    assert float(summary["final/fd_digits"]) == pytest.approx(content["rows"][0]["value"])
    assert "distance/fd_digits" in done.stdout and "finished (exit code 0)" in done.stdout
    assert summary["schedule.T"] == "1000"  # the config
    pictures = {p.parent.name for p in file.parent.rglob("media/images/**/*.png")}
    assert pictures == {"samples", "final"}


def test_the_same_command_shows_the_result_and_trains_no_more(place):
    before = (place / "logs/train/first/checkpoints/last.ckpt").stat().st_mtime_ns
    folder, _ = results(place)
    measured = (folder / "results.json").stat().st_mtime_ns
    said = command("train.py", "debug=true", "run=first", cwd=place).stdout
    assert "finished at step 20" in said and "another" in said and "fd_digits" in said
    assert (place / "logs/train/first/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert (folder / "results.json").stat().st_mtime_ns == measured
    refused = command("train.py", "debug=true", "run=first", "resume=never", cwd=place, check=False)
    assert refused.returncode == 2 and "already holds a run" in refused.stderr


def test_train_once_sample_with_any_sigma(place):
    """Another sampler measures the run that is there and trains nothing; evaluate.py finds the same folder."""
    before = (place / "logs/train/first/checkpoints/last.ckpt").stat().st_mtime_ns
    first, _ = results(place)
    words = ["sampler=ddpm", "sampler.steps=4", "debug=true", "logger=csv"]
    said = command("train.py", "run=first", *words, cwd=place).stdout
    assert "Epoch" not in said and (place / "logs/train/first/checkpoints/last.ckpt").stat().st_mtime_ns == before
    folder, content = results(place)
    assert folder != first and content["rows"][0]["params"]["sigma"] == "Eta(eta=1.0)" and first.is_dir()
    shards = sorted(path.stat().st_mtime_ns for path in folder.rglob("*.npy"))
    again = command("evaluate.py", "checkpoint=first", *words, cwd=place).stdout
    assert f"folder   {folder.relative_to(place)}" in again  # and takes the images that lie there
    assert sorted(path.stat().st_mtime_ns for path in folder.rglob("*.npy")) == shards
    assert json.loads((folder / "results.json").read_text())["rows"][0]["value"] == content["rows"][0]["value"]
    shutil.rmtree(folder)
    command("train.py", "debug=true", "run=first", cwd=place)  # the pointer is as it was


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("schedule=linear", "schedule=Linear: logs/train/first holds a run with schedule=Cosine; run=NAME starts another"),
        ("optimizer.adam.lr=1e-5", "optimizer.adam.lr=1e-05: logs/train/first holds a run with optimizer.adam.lr=0.002"),
        ("data.batch_size=64", "data.batch_size=64: logs/train/first holds a run with data.batch_size=128"),
    ],
)
def test_a_folder_of_another_identity_is_refused_with_the_first_line_that_differs(place, word, message):
    refused = command("train.py", "debug=true", "run=first", word, cwd=place, check=False)
    assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr


def test_the_checkpoints_hold_what_an_evaluation_needs(place):
    for name in ("last", "best"):
        checkpoint = read(place / f"logs/train/first/checkpoints/{name}.ckpt")
        assert checkpoint["config"]["hardware"]["precision"] == "32-true"  # auto, as it was settled
        assert {k.split(".")[0] for k in checkpoint["state_dict"]} == {"denoiser", "ema"}
        assert {v.dtype for v in checkpoint["state_dict"].values()} == {torch.float32}
        assert checkpoint["images_seen"] == checkpoint["step"] * 128
    assert "optimizer_states" not in checkpoint  # best holds weights only


def test_evaluate_any_sampler_of_the_run(place):
    words = ["checkpoint=first", "sampler.steps=10", "sampler.eta=0.5", "n=70", "sets=2", "save=npz", "study.block=32"]
    said = command("evaluate.py", *words, cwd=place).stdout
    own, _ = results(place)
    (folder,) = set((place / "logs/evaluate/first").iterdir()) - {own}
    content = json.loads((folder / "results.json").read_text())
    assert content["rows"][0]["params"] == {
        "sampler": "Generalized",
        "S": 10,
        "sigma": "Eta(eta=0.5)",
        "tau": "Uniform()",
        "clip": True,
        "limit": 10.0,
    }
    assert f"fd_digits {content['rows'][0]['value']:.2f}" in said
    assert np.load(folder / "images.npz")["arr_0"].shape == (140, 8, 8, 1)
    assert {p.name for p in folder.glob("*.png")} == {"grid.png", "trajectory.png"}


REFUSED = [
    ("sampler.steps=2000", "sampler.steps=2000 is more than schedule.T=1000"),
    ("sampler.tau=[1001]", "every step must lie in 1..1000"),
    ("features=none", "no feature network"),
    ("n=1", "n=1, sets=null: at least 4 images and 1 set are needed"),
    ("study.splits=1", "study.splits=1: at least 2 draws of real images are needed"),
    ("save=jpg", "save=jpg: png, npz or null"),
    ("which=worst", "which=worst: last or best"),
    ("weights=both", "weights=both: ema"),
    ("data.workers=3", "unknown key data.workers"),
    ("study.block=0", "study.block=0: at least 1 image is computed at once"),
]


@pytest.mark.parametrize(("word", "message"), REFUSED)
def test_evaluate_refuses_what_the_run_cannot_serve(place, word, message, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "checkpoint=first", word])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    from anysigma.compose.cli import entry

    with pytest.raises(SystemExit) as ended:
        entry(importlib.import_module("evaluate").main, f"{ROOT}/conf/evaluate")
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and message in error and "\n" not in error, error


def test_evaluate_alone_lists_the_runs(place):
    assert command("evaluate.py", cwd=place).stdout.startswith("first  step 20  fd_digits")


def test_a_cut_run_goes_on_bit_for_bit(tmp_path):
    whole = train_here(tmp_path / "whole")
    train_here(tmp_path / "cut", "trainer.max_steps=13")
    resumed = train_here(tmp_path / "cut")  # the number of steps makes no other run
    assert resumed["step"] == whole["step"] == 20 and same_weights(whole, resumed)
    for run in ("whole", "cut"):  # and the record shows each number once
        with open(tmp_path / run / "metrics.csv") as file:
            keys = [(row["step"], row["metric"]) for row in csv.DictReader(file)]
        assert len(keys) == len(set(keys))


def test_accumulation_counts_and_resumes_in_whole_steps(tmp_path):
    words = ["trainer.accumulate_grad_batches=2", "data.batch_size=16", "features=none"]
    whole = train_here(tmp_path / "whole", "trainer.max_steps=8", *words)
    train_here(tmp_path / "cut", "trainer.max_steps=5", *words)
    resumed = train_here(tmp_path / "cut", "trainer.max_steps=8", *words)
    assert resumed["step"] == 8 and resumed["images_seen"] == 8 * 16 and same_weights(whole, resumed)


def test_the_sampler_leaves_no_trace_in_the_weights(tmp_path):
    """One objective: DDPM and DDIM differ in sampling alone."""
    runs = [train_here(tmp_path / s, f"sampler={s}", "trainer.max_steps=6", "features=none") for s in ("ddpm", "ddim")]
    assert same_weights(*runs)
    other = train_here(tmp_path / "other", "seed=1", "trainer.max_steps=6", "features=none")
    assert not same_weights(runs[0], other)


def test_watching_leaves_no_trace_in_the_weights(tmp_path):
    often = train_here(tmp_path / "often", "callbacks.grid.every=1", "callbacks.held_out.every=1", "trainer.max_steps=4")
    seldom = train_here(tmp_path / "seldom", "callbacks.grid.every=100", "features=none", "trainer.max_steps=4")
    assert same_weights(often, seldom)


def test_without_features_training_goes_on_and_best_watches_the_held_out_loss(tmp_path, capsys):
    train_here(tmp_path, "features=none", "trainer.max_steps=10")
    assert "no distance: this data set has no feature network" in capsys.readouterr().out
    assert read(tmp_path / "checkpoints/best.ckpt")["step"] == 10
    assert "fd_" not in (tmp_path / "metrics.csv").read_text()


def test_best_is_saved_when_what_it_watches_is_made(tmp_path):
    """Also at the end, where the distance is made though the step is no multiple of `every`."""
    words = ["trainer.max_steps=13", "callbacks.distance.every=8", "callbacks.held_out.every=3"]
    train_here(tmp_path, *words)
    with open(tmp_path / "metrics.csv") as file:
        found = {int(r["step"]): float(r["value"]) for r in csv.DictReader(file) if r["metric"] == "distance/fd_digits"}
    assert sorted(found) == [8, 13] and read(tmp_path / "checkpoints/best.ckpt")["step"] == min(found, key=found.get)


def test_a_study_that_fails_costs_the_figures_and_not_the_run(tmp_path):
    words = ["debug=true", "logger=csv", "run=a", *LIGHT]
    failed = command("train.py", *words, "study=two_sample", "study.n=null", "study.folds=400", cwd=tmp_path, check=False)
    assert failed.returncode == 1 and "trained and saved, but not measured: study.folds=400" in failed.stderr
    assert read(tmp_path / "logs/train/a/checkpoints/last.ckpt")["step"] == 20
    done = command("train.py", *words, "features=none", cwd=tmp_path)
    assert "no distance: this data set has no feature network" in done.stdout and "Epoch" not in done.stdout


@pytest.mark.slow
def test_time_counts_from_this_start_so_that_jobs_can_be_chained(tmp_path):
    words = [
        "debug=true",
        "logger=csv",
        "run=a",
        "features=none",
        "trainer.max_steps=100000",
        "trainer.max_time=00:00:00:03",
    ]
    steps = []
    for _ in range(2):
        said = command("train.py", *words, cwd=tmp_path).stdout
        steps.append(read(tmp_path / "logs/train/a/checkpoints/last.ckpt")["step"])
        assert f"time is up at step {steps[-1]} and saved; the same command goes on from there" in said
    assert steps[1] > steps[0] + 3 and not (tmp_path / "logs/train/a/results.json").exists()


def test_the_slides_ten_steps(tmp_path):
    """T = 10 and 10 → 8 → 6 → 4 → 2 → 0, from the command line to images."""
    words = [
        "schedule=linear",
        "schedule.T=10",
        "sampler.tau=[10,8,6,4,2,0]",
        "debug=true",
        "logger=csv",
        "run=slides",
        *LIGHT,
    ]
    command("train.py", *words, cwd=tmp_path)
    assert results(tmp_path, "slides")[1]["rows"][0]["params"]["S"] == 5


def test_a_full_disk_ends_in_one_line_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    train_here(tmp_path, "trainer.max_steps=5", "features=none")
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train_here(tmp_path, "trainer.max_steps=8", "features=none")
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in ((signal.SIGINT, 130), (signal.SIGUSR1, 138))),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(tmp_path, number, code):
    words = [sys.executable, str(ROOT / "train.py"), "debug=true", "logger=csv", "run=cut", "features=none", *LIGHT]
    process = subprocess.Popen([*words, "trainer.max_steps=100000"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "logs/train/cut/metrics.csv").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    step = read(tmp_path / "logs/train/cut/checkpoints/last.ckpt")["step"]
    assert process.returncode == code and f"stopped at step {step} and saved; the same command goes on" in said
    said = command(*Path(words[1]).parts[-1:], *words[2:], f"trainer.max_steps={step + 2}", cwd=tmp_path).stdout
    assert f"going on from step {step} of {step + 2}" in said and f"finished at step {step + 2}" in said


def test_two_processes_make_one_run(tmp_path):
    """Children of Lightning's launcher come through anysigma (else torchvision fails) and write into one folder."""
    words = ["hardware=cpu", "hardware.devices=2", "debug=true", "logger=csv", "run=two", *LIGHT]
    said = command("train.py", *words, cwd=tmp_path).stdout
    assert said.count("finished at step 20") == 1
    assert [p.name for p in (tmp_path / "logs/train").iterdir()] == ["two"]
    two = read(tmp_path / "logs/train/two/checkpoints/last.ckpt")
    assert two["images_seen"] == 20 * 128
