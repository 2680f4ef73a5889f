"""Real processes (DDP over gloo) against one process with the same batch: the same data, steps, figures, images."""

import csv
import importlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from test_training import ROOT, command, train_here

from anysigma.compose.checks import check_train
from anysigma.compose.config import build
from anysigma.data.digits import Digits
from anysigma.data.images import to_uint8
from anysigma.diffusion.noise import Draws
from anysigma.runs.checkpoint import load_weights, read
from anysigma.training.callbacks.grid import Grid
from anysigma.training.callbacks.held_out import HeldOut
from anysigma.training.module import DiffusionModule

B, STEPS = 200, 15  # 3,000 images, two epochs and a bit
SETTINGS = [
    f"trainer.max_steps={STEPS}", "model.channels=8", "callbacks.grid.n=24", "callbacks.grid.every=15",
    "callbacks.held_out.every=15", "callbacks.distance.n=50", "callbacks.distance.every=15", "data.flips=true",
]  # fmt: skip
TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]

# train.py, with every batch that a training step gets kept as <rank>-<micro-step>.npy
RECORDING = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import train
from anysigma.compose.cli import entry
from anysigma.training.module import DiffusionModule

step = DiffusionModule.training_step

def recorded(self, x_0, i):
    np.save(f"{{self.global_rank}}-{{i:03d}}.npy", x_0.numpy())
    return step(self, x_0, i)

DiffusionModule.training_step = recorded
entry(train.main, {str(ROOT / "conf/train")!r})
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder from which two processes made logs/train/two, with the batches and the output."""
    place = tmp_path_factory.mktemp("two")
    (place / "recording.py").write_text(RECORDING)
    words = [*TWO, "debug=true", "logger=csv", "run=two", f"data.batch_size={B}", "study.splits=2", *SETTINGS]
    done = subprocess.run(
        [sys.executable, "recording.py", *words], cwd=place, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (place / "said").write_text(done.stdout)
    return place


@pytest.fixture
def run(two):
    return two / "logs/train/two"


def batches(two, rank):
    return [torch.from_numpy(np.load(path)) for path in sorted(two.glob(f"{rank}-*.npy"))]


def rows_of(folder):
    with open(folder / "metrics.csv") as file:
        return [(row["metric"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]


def test_every_image_is_used_once_an_epoch_and_never_by_both(two):
    """Over the first N positions of the stream; mirrored images count as the image."""
    stream = torch.cat([torch.cat(pair) for pair in zip(batches(two, 0), batches(two, 1), strict=True)])
    assert len(stream) == STEPS * B
    images, N = to_uint8(stream).flatten(1), len(Digits().train)
    flipped = to_uint8(stream).flip(3).flatten(1)
    whole = sorted(min(bytes(a), bytes(b)) for a, b in both_ways(Digits().train))
    for epoch in range(2):
        part = slice(epoch * N, (epoch + 1) * N)
        pairs = zip(images[part].numpy(), flipped[part].numpy(), strict=True)
        assert sorted(min(bytes(a), bytes(b)) for a, b in pairs) == whole


def both_ways(images):
    return zip(images.flatten(1).numpy(), images.flip(3).flatten(1).numpy(), strict=True)


@pytest.fixture(scope="module")
def one(two, tmp_path_factory):
    """One process with the same batch: its folder, its checkpoint, the batches its steps got."""
    folder, seen, step = tmp_path_factory.mktemp("one"), [], DiffusionModule.training_step

    def recorded(self, x_0, i):
        seen.append(x_0.clone())
        return step(self, x_0, i)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DiffusionModule, "training_step", recorded)
        checkpoint = train_here(folder, f"data.batch_size={B}", *SETTINGS)
    return folder, checkpoint, seen


def test_two_processes_get_what_one_gets(two, one):
    pairs = zip(batches(two, 0), batches(two, 1), strict=True)
    assert all(torch.equal(torch.cat(pair), whole) for pair, whole in zip(pairs, one[2], strict=True))


def test_they_take_the_steps_of_one_process(run, one):
    """Gradients are averaged over ranks, t and ε belong to positions of the stream."""
    mine, theirs = (read(run / "checkpoints/last.ckpt"), one[1])
    assert (mine["step"], mine["images_seen"]) == (theirs["step"], theirs["images_seen"]) == (STEPS, STEPS * B)
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(mine["state_dict"][name], tensor, rtol=0, atol=1e-5, msg=name)


def test_other_noise_makes_other_steps(run, tmp_path, monkeypatch):
    """The tolerance above can tell: the same images with other t and ε lie farther away."""
    monkeypatch.setattr("anysigma.training.module.Draws", lambda seed, what: Draws(seed + 1, what))
    plain = train_here(tmp_path, f"data.batch_size={B}", "features=none", *SETTINGS[:2], "data.flips=true")
    mine = read(run / "checkpoints/last.ckpt")["state_dict"]
    assert max((mine[name] - tensor).abs().max() for name, tensor in plain["state_dict"].items()) > 1e-3


# --- any number of processes and micro-steps -----------------------------------------------------------------------

QUICK = [
    "features=none", "trainer.max_steps=20", "trainer.log_every_n_steps=1", "data.batch_size=16", "~callbacks.grid",
    "~callbacks.distance", "~callbacks.best", "~callbacks.held_out",
]  # fmt: skip
KINDS = {
    "points": ["data=rings", "model=mlp", "objective/draw=stratified"],
    "digits": ["model.channels=8", "data.flips=true"],
}


def together(processes, micro_steps, folder, *words):
    """One run of several processes, forked from this one, so that its imports are theirs; returns the losses by step."""
    words = [*QUICK, f"trainer.accumulate_grad_batches={micro_steps}", *words]
    if processes == 1:
        train_here(folder, *words)
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words += ["hardware=ddp", "hardware.accelerator=cpu", f"hardware.devices={processes}"]
        fork = multiprocessing.get_context("fork").Process
        members = [fork(target=member, args=(rank, port, folder, words)) for rank in range(processes)]
        for one in members:
            one.start()
        for one in members:
            one.join(120)
        assert [one.exitcode for one in members] == [0] * processes
    return {step: value for metric, step, value in rows_of(folder) if metric == "train/loss"}


def member(rank, port, folder, words):
    """As Lightning's launcher and torchrun tell a process who it is."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train_here(folder, *words)


@pytest.fixture(scope="module", params=KINDS)
def alone(request, tmp_path_factory):
    """The kind of run, and the losses of one process without micro-steps."""
    words = KINDS[request.param]
    losses = together(1, 1, tmp_path_factory.mktemp(request.param), *words)
    assert len(losses) == 20 and losses[20] < losses[1]
    return words, losses


@pytest.mark.parametrize("processes, micro_steps", [(2, 1), (4, 1), (1, 2), (2, 2)])
def test_losses_agree_for_any_number_of_processes_and_micro_steps(alone, processes, micro_steps, tmp_path):
    words, losses = alone
    assert together(processes, micro_steps, tmp_path, *words) == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("first, then", [((2, 1), (1, 1)), ((1, 1), (2, 2)), ((1, 4), (1, 1))])
def test_a_run_goes_on_with_another_number_of_processes_and_micro_steps(alone, first, then, tmp_path):
    words, losses = alone
    together(*first, tmp_path, *words, "trainer.max_steps=9")
    assert together(*then, tmp_path, *words) == pytest.approx(losses, rel=1e-5)
    checkpoint = read(tmp_path / "checkpoints/last.ckpt")
    assert (checkpoint["step"], checkpoint["images_seen"]) == (20, 20 * 16)


def test_a_batch_that_cannot_be_shared_is_refused_before_processes_start(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.fit", None)
    with pytest.raises(ValueError, match=r"^data.batch_size=15: .* by 2 \(processes\) .* a multiple of 2 is needed$"):
        train_here(tmp_path, *TWO, "features=none", "data.batch_size=15")


def trained(run):
    """The run's module in one process, with the averaged weights of its last checkpoint, and what callbacks ask for."""
    checkpoint = read(run / "checkpoints/last.ckpt")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        job = build(check_train(compose("train", ["debug=true", "logger=csv", *SETTINGS]))["job"] | {"trainer": None})
    load_weights(job.module.ema, checkpoint)
    data = SimpleNamespace(train=Digits().train, held_out=Digits().held_out)
    plugin = SimpleNamespace(forward_context=torch.inference_mode)
    job.module._trainer = SimpleNamespace(
        precision_plugin=plugin, strategy=SimpleNamespace(reduce=lambda value, **_: value), datamodule=data,
        is_global_zero=True, loggers=[], callback_metrics={}, global_step=STEPS,
    )  # fmt: skip
    return job


def test_each_held_out_image_counts_once(run):
    job, callback = trained(run), HeldOut(1, 1000)
    callback.act(job.module._trainer, job.module)
    alone = job.module._trainer.callback_metrics["held_out/loss"].item()
    (logged,) = [value for metric, step, value in rows_of(run) if (metric, step) == ("held_out/loss", STEPS)]
    assert logged == pytest.approx(alone, rel=1e-5)


def test_the_grid_of_samples_is_the_same_picture(run, tmp_path):
    job = trained(run)
    job.module._trainer.default_root_dir = tmp_path
    Grid(1, 24, job.callbacks["grid"].sampler, seed=1).act(job.module._trainer, job.module)
    name = f"samples/step-{STEPS:07d}.png"
    assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_the_distance_is_that_of_one_process(run, one):
    """The weights of both runs agree but for rounding, so do their images' statistics."""
    found = [{row[:2]: row[2] for row in rows_of(folder)}["distance/fd_digits", STEPS] for folder in (run, one[0])]
    assert found[0] == pytest.approx(found[1], rel=1e-2)


def test_only_one_process_writes_and_speaks(two, run):
    keys = [row[:2] for row in rows_of(run)]
    assert len(keys) == len(set(keys)) and ("train/loss", STEPS) in keys and ("final/fd_digits", STEPS) in keys
    said = (two / "said").read_text()
    assert [said.count(words) for words in (" M parameters", "finished at step 15")] == [1, 1]
    assert [path.name for path in (two / "logs/train").iterdir()] == ["two"]
    inside = {".hydra", "checkpoints", "metrics.csv", "results.json", "samples"}
    assert inside <= {path.name for path in run.iterdir()} <= inside | {"shards", ".lock"} and not list(two.rglob("*.part"))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}


def test_the_generated_set_is_the_same_bit_for_bit(run, tmp_path, monkeypatch):
    """Evaluated in two folders, so that neither finds the images of the other."""
    words = [f"checkpoint={run}", "sampler.steps=5", "sampler.eta=0.5", "n=70", "sets=1", "save=npz", "logger=csv"]
    words += ["study.block=32", "study.splits=2"]
    alone, both = tmp_path / "alone", tmp_path / "both"
    for place in (alone, both):
        place.mkdir()
    said = command("evaluate.py", *words, *TWO, cwd=both).stdout
    evaluate(alone, *words, monkeypatch=monkeypatch)
    assert said.count("fd_digits") == 1
    images = [np.load(next(place.rglob("images.npz")))["arr_0"] for place in (alone, both)]
    assert images[0].shape == (70, 8, 8, 1) and np.array_equal(*images)
    values = [json.loads(next(place.rglob("results.json")).read_text())["rows"][0]["value"] for place in (alone, both)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def evaluate(place, *words, monkeypatch):
    """evaluate.py in this process."""
    from anysigma.compose.cli import entry

    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    entry(importlib.import_module("evaluate").main, f"{ROOT}/conf/evaluate")
