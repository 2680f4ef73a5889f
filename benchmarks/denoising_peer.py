"""denoising-diffusion-pytorch as a contestant: its Unet, GaussianDiffusion and Trainer."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet
from PIL import Image
from torch import Tensor

from benchmarks.operations import forward
from benchmarks.task import Task, held_to
from benchmarks.turns import Turns, obey, synchronise

WITHIN = 0.04  # its parameters may differ from those of the others by this share; 3.8 % on digits, else under 3


def unet(task: Task) -> Unet:
    """Its network with the multipliers of the others, in the width whose number of parameters is nearest to theirs.

    With its own (1, 2, 4, 8) as many parameters would stand where images are smallest, and do less than a third of the work.
    """
    net = task.net
    wide = dict(dim_mults=tuple(net.multipliers), channels=net.shape[0], dropout=net.dropout)
    with torch.device("meta"):  # to count, not to compute
        counts = {dim: size(Unet(dim, **wide)) for dim in range(8, 2 * net.channels, 2)}
    dim = min(counts, key=lambda dim: abs(counts[dim] - net.parameters))
    held_to(counts[dim], task, WITHIN)
    return Unet(dim, **wide).to(memory_format=getattr(torch, f"{task.memory_format}_format", torch.channels_last))


def size(model: torch.nn.Module) -> int:
    """Parameters."""
    return sum(p.numel() for p in model.parameters())


def diffusion(task: Task) -> GaussianDiffusion:
    """Its process with its own defaults (v, sigmoid schedule), DDIM in S steps where it samples."""
    return GaussianDiffusion(unet(task), image_size=tuple(task.net.shape[1:]), timesteps=1000, sampling_timesteps=task.S)


def trainer_of(task: Task) -> Trainer:
    """Its Trainer with its own defaults, but for batch and rate; images come from memory, as ours do, not from a folder."""
    images = torch.from_numpy(np.load(task.images))
    folder = Path(task.folder) / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(100):  # it refuses a smaller folder; these are never read
        Image.new("L", (8, 8)).save(folder / f"{number}.png")
    made = Trainer(
        diffusion(task), folder, train_batch_size=task.batch, train_lr=task.lr, calculate_fid=False,
        amp=task.precision == "bf16", mixed_precision_type="bf16", results_folder=str(Path(task.folder) / "results"),
        save_and_sample_every=10**9, train_num_steps=0,
    )  # fmt: skip
    made.dl = batches(images, task.batch, made.device)
    return made


def batches(images: Tensor, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Endless batches in [0, 1], in random order."""
    x = images.float().div_(255).to(device)
    while True:
        order = torch.randperm(len(x), device=device)
        for chosen in order.split(batch):
            if len(chosen) == batch:
                yield x[chosen]


def ready(turns: Turns, task: Task, network: torch.nn.Module) -> None:
    """What is said of it."""
    facts = {"precision": task.precision, "memory_format": task.memory_format, "torch": torch.__version__}
    peer = {"denoising-diffusion-pytorch": version("denoising-diffusion-pytorch")}
    peer |= {"gflop": forward(network, task.net.shape)}
    turns.answer(parameters=size(network), threads=torch.get_num_threads(), **facts, **peer)


def step(turns: Turns, task: Task) -> None:
    """The step of its Trainer: each is one more that it is told to train."""
    trainer = trainer_of(task)
    ready(turns, task, trainer.model.model)

    def once() -> None:
        trainer.train_num_steps = trainer.step + 1
        trainer.train()

    @torch.inference_mode()
    def images(n: int) -> np.ndarray:
        found = trainer.ema.ema_model.eval().sample(batch_size=n).clamp(0, 1)
        return (found * 255).round().byte().cpu().numpy()

    obey(turns, once, images, partial(synchronise, task.device))


def sample(turns: Turns, task: Task) -> None:
    """A batch of images by its DDIM."""
    made = diffusion(task).to(task.device).eval()
    ready(turns, task, made.model)

    def once() -> None:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
            made.sample(batch_size=task.batch).float().cpu()

    obey(turns, once)
