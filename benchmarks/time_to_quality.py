"""How long each must train on digits until its images are as near to real ones as real ones are, but for a fifth."""

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anysigma.data.digits import Digits
from anysigma.metrics.anchors import SPLITS, anchors
from anysigma.metrics.features import ClassifierFeatures
from anysigma.metrics.fidelity import frechet
from anysigma.metrics.vectors import vectors
from benchmarks.child import Child
from benchmarks.course import Course
from benchmarks.task import OURS, Task

ABOVE, N, DRAWS, SHAPE = 1.2, 360, 200, (1, 8, 8)
# Tuned: the rate and schedule with which each came nearest; the peers' own defaults come nowhere near in this time.
CONTESTANTS = {
    "anysigma": ("ours.whole", dict(network=OURS, precision="auto", memory_format="auto")),
    "diffusers": ("diffusers_peer.step", dict(network="digits", lr=1e-3, schedule="cosine")),
    "denoising-diffusion-pytorch": ("denoising_peer.step", dict(network="digits", lr=1e-3)),
}


class Judge:
    """fd_digits of images, against the training images; `limit`: 1.2 x the mean of `draws` splits of real ones."""

    def __init__(self, draws: int = DRAWS, n: int = N):
        data, self.n = Digits(), n
        self.features = ClassifierFeatures("digits", SHAPE)
        self.real = vectors(data.train, self.features)
        found = anchors(self.real, vectors(data.held_out, self.features), n, draws, self.features)
        self.limit = ABOVE * found[self.features.metric][SPLITS].value

    def __call__(self, images: Tensor) -> float:
        """The mean over its sets of n."""
        sets = vectors(images, self.features).split(self.n)
        return mean(frechet(one, self.real, self.features) for one in sets)


def measure(where: Course, quick: bool) -> dict[str, Any]:
    """Seconds of training, the clock stopped while images are made and measured; three seeds, each in turn."""
    judge = Judge(4, 70) if quick else Judge()
    slice_, most, seeds = (1.0, 2.0, (0,)) if quick else (5.0, 300.0, (0, 1, 2))
    chosen = {name: faster(where, name) for name in CONTESTANTS if name == "anysigma" or where.peers.exists()}
    found = {name: [] for name in chosen}
    for seed in seeds:
        for name, precision in chosen.items():
            child = made(where, name, precision, seed)
            found[name].append(until(child, judge, where.folder / "images.npy", slice_, most))
            child.close()
            print(f"  {name}, seed {seed}: {found[name][-1]}")
    rows = [row(name, chosen[name], runs) for name, runs in found.items()]
    columns = ["contestant", "computed as", "seconds of training", "each seed", "its last fd_digits"]
    note = f"fd_digits at {judge.n} images ≤ {judge.limit:.2f}, {ABOVE} x the mean of real splits; every {slice_:g} s."
    found = {"columns": columns, "rows": rows, "runs": found}
    return {"title": "time to quality on digits", "note": f"{note} Wanted: ≤ 0.35 of the better peer's.", **found}


def row(name: str, precision: str, runs: list[dict[str, Any]]) -> list[str]:
    """One contestant over its seeds."""
    each = [f"{run['seconds']:.0f}" if run["reached"] else f"> {run['seconds']:.0f}" for run in runs]
    whole = mean(run["seconds"] for run in runs)
    last = ", ".join(f"{run['distances'][-1]:.2f}" for run in runs)
    above = "" if all(run["reached"] for run in runs) else "> "
    return [name, precision, f"{above}{whole:.0f}", ", ".join(each), last]


def made(where: Course, name: str, precision: str, seed: int) -> Child:
    """The contestant, untrained."""
    who, settings = CONTESTANTS[name]
    folder = where.folder / f"quality-{name}-{precision}-{seed}"
    images = where.images(OURS)
    task = Task(batch=128, images=images, folder=str(folder), seed=seed, threads=where.threads,
                **{**settings, "precision": precision})  # fmt: skip
    return Child(who, task, sys.executable if who.startswith("ours") else where.peers)


def faster(where: Course, name: str) -> str:
    """Ours chooses by itself; a peer gets the precision in which it is faster here."""
    if name == "anysigma":
        return "auto"
    rates = {}
    for precision in ("fp32", "bf16"):
        child = made(where, name, precision, seed=99)
        child.rate(steps=2)
        rates[precision] = child.rate(seconds=2.0)[0]
        child.close()
    return max(rates, key=rates.get)


def until(child: Child, judge: Judge, file: Path, slice_: float, most: float) -> dict[str, Any]:
    """Train by slices until the judge is content, the run is done or the time is up."""
    seconds, distances, done = 0.0, [], False
    while not done and seconds < most:
        answer = child.ask(seconds=slice_)
        seconds, done = seconds + answer["seconds"], answer.get("done", False)
        child.ask(n=2 * judge.n, to=str(file))
        distances.append(judge(torch.from_numpy(np.load(file))))
        if distances[-1] <= judge.limit:
            return {"reached": True, "seconds": seconds, "distances": distances}
    return {"reached": False, "seconds": seconds, "distances": distances}
