"""study=table: its wall time over the time that its network evaluations alone would take."""

import json
import time
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import nn

from anysigma.compose.checks import check_train
from anysigma.compose.config import build, register
from anysigma.studies.base import Model
from benchmarks.child import ROOT
from benchmarks.course import Course
from benchmarks.ours import launched
from benchmarks.pairs import spread

WANTED = 1.10


class Counted(nn.Module):
    """A network that counts how many images it was asked for."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.images = network, 0

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.images += len(x_t)
        return self.network(x_t, t)


def measure(where: Course, quick: bool) -> dict[str, Any]:
    """The study on the digits' default network, untrained: the work is the same. Real images' figures are made before."""
    words = ["logger=csv", "study=table", f"study.cache={where.folder / 'cache'}"]
    words += [f"study.steps={[2, 3] if quick else [10, 20]}".replace(" ", ""), "study.sets=2"]
    words += ["study.n=70", "study.splits=4"] if quick else []
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", words))
    job, study = build(node["job"]), build(node["study"])
    study_of = lambda number: one(job, study, node, where.folder / f"study-{number}")  # noqa: E731
    study_of("first")  # anchors and vectors of real images are kept from here on
    ratios, walls, evaluations = zip(*(study_of(number) for number in range(1 if quick else 3)), strict=True)
    row = [f"{evaluations[0]:,}", f"{median(walls):.3g}", f"{median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"]
    columns = ["network evaluations", "seconds", "over the network's own", "smallest to largest"]
    note = f"Digits, the default network, DDIM's and DDPM's rows; real images measured before. Wanted: ≤ {WANTED}."
    found = {"title": "study=table over the network time of its evaluations", "note": note, "columns": columns}
    return found | {"rows": [row], "ratio": spread(ratios)}


def one(job: Any, study: Any, node: dict[str, Any], folder: Any) -> tuple[float, float, int]:
    """Wall time over network time, wall time, network evaluations."""
    job.data.setup()
    (hardware, fabric), denoiser = launched(job), job.module.ema
    network, counted = denoiser.network, Counted(denoiser.network)
    denoiser.network = counted
    try:
        with fabric.autocast():
            before = forward_seconds(denoiser, job.data.shape, study.block)
            counted.images, start = 0, time.perf_counter()
            model = Model(denoiser, job.data.shape, {"weights": "none", "precision": hardware.precision})
            result = study.run(model, build(node["sampler"]), job.data, job.features(), folder)
            wall, images = time.perf_counter() - start, counted.images
            after = forward_seconds(denoiser, job.data.shape, study.block)
    finally:
        denoiser.network = network
    json.dumps([row.value for row in result.rows])  # all of them were measured
    return wall / ((before + after) / 2 * images / study.block), wall, images


@torch.inference_mode()
def forward_seconds(denoiser: Any, shape: tuple[int, ...], block: int, times: int = 20) -> float:
    """Median time of one evaluation of a block."""
    x_t, t, found = torch.randn(block, *shape), torch.full((block,), 500), []
    for _ in range(times):
        start = time.perf_counter()
        denoiser.network(x_t, t)
        found.append(time.perf_counter() - start)
    return median(found[2:])
