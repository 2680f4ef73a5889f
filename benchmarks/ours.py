"""anysigma as a contestant: its training as `python train.py` runs it, a bare loop over the same parts, its sampling."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.fabric import Fabric
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from anysigma.compose.checks import check_train
from anysigma.compose.config import build, register
from anysigma.data.images import from_uint8, to_uint8
from anysigma.diffusion.samplers.base import generate
from anysigma.diffusion.samplers.generalized import Generalized
from anysigma.diffusion.samplers.tau import Uniform
from anysigma.machine.choice import for_sampling
from anysigma.machine.hardware import Hardware
from anysigma.runs.identity import identity
from anysigma.training.job import Facts, TrainingJob
from benchmarks.child import ROOT
from benchmarks.operations import forward
from benchmarks.task import OURS, Network, Task, held_to
from benchmarks.turns import Turn, Turns, obey, synchronise

CLIP = 1.0
SAMPLING = ("grid", "distance", "best")  # callbacks that sample, and one that waits for them
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "auto": "auto"}
ENDLESS = 10**9  # steps


class Images:
    """Images of a file where the data module looks for a data set."""

    grey_levels = 256

    def __init__(self, path: str):
        self.train = torch.from_numpy(np.load(path))
        self.held_out = self.train[:360]


def network_words(net: Network) -> list[str]:
    """What a person would type for this network."""
    numbers = ("channels", "multipliers", "blocks", "groups", "norm_eps", "dropout")
    words = [f"model.{name}={list(v) if isinstance(v := getattr(net, name), tuple | list) else v}" for name in numbers]
    words += [f"model.attention=[{net.attention}]", "model.fit=false", "model.first_weights=fan_average"]
    return [*words, f"model.downsample={'asymmetric' if net.asymmetric else 'symmetric'}", "optimizer.adam.lr=2e-4"]


def words(task: Task) -> list[str]:
    """The command line of a task, but for the images."""
    shape = "[1,8,8]" if task.network == OURS else str(list(task.net.shape)).replace(" ", "")
    found = [f"data.shape={shape}", f"data.batch_size={task.batch}", f"seed={task.seed}", "logger=csv", "features=none"]
    found += [f"hardware={'gpu' if task.device == 'cuda' else 'cpu'}", f"hardware.threads={task.threads}"]
    found += [f"hardware.precision={PRECISIONS[task.precision]}", f"hardware.memory_format={task.memory_format}"]
    net = [] if task.network == OURS else network_words(task.net)
    return [word.replace(" ", "") for word in [*found, *net, *task.words]]


def job_of(task: Task, *more: str) -> tuple[dict[str, Any], TrainingJob]:
    """The config and the training job of a task, its images those of the file."""
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        node = check_train(compose("train", [*words(task), *more]))
    torch.manual_seed(task.seed)
    job = build(node["job"])
    job.data.source = Images(task.images)
    if task.network != OURS:
        held_to(parameters(job.module), task)
    return node, job


def parameters(module: LightningModule) -> int:
    """Of the trained network."""
    return sum(p.numel() for p in module.denoiser.parameters())


class Gate(Callback):
    """Lets the trainer run as many steps as it was told to, and then wait.

    Answers the seconds of a turn and how many of them went to what follows the backward pass: clipping, optimiser, EMA.
    """

    def __init__(self, turns: Turns, task: Task):
        self.turns, self.task, self.orders = turns, task, iter(turns)
        self.turn: Turn | None = None
        self.after = self._then = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        weight = next(p for p in module.denoiser.parameters() if p.dim() == 4)
        nhwc = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
        facts = {"precision": trainer.precision, "memory_format": "channels_last" if nhwc else "contiguous"}
        optimizer = trainer.optimizers[0]
        facts |= {
            "gflop": forward(module.denoiser.network, module.shape),
            "optimizer": type(optimizer).__name__,
            "fused": bool(optimizer.defaults.get("fused")),
        }
        self.turns.answer(parameters=parameters(module), threads=torch.get_num_threads(), torch=torch.__version__, **facts)
        self._next(module)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self._then = self.turn.seconds

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.after += self.turn.seconds - self._then
        self.turn.steps += 1
        done = trainer.global_step >= trainer.max_steps
        if self.turn.over or done:
            synchronise(self.task.device)
            seconds = self.turn.seconds
            split = {"after_backward": self.after} if self.task.device == "cpu" else {}  # a GPU is told, not waited for
            self.turns.answer(steps=self.turn.steps, seconds=seconds, done=done, **split)
            self._next(module)

    def _next(self, module: LightningModule) -> None:
        for order in self.orders:
            if "to" not in order:
                self.turn, self.after = Turn(order), 0.0
                return
            np.save(order["to"], self._images(module, order["n"]))
            self.turns.answer()
        os._exit(0)  # no more orders, and nothing of this run is to be kept

    def _images(self, module: LightningModule, n: int) -> np.ndarray:
        with torch.inference_mode():
            return to_uint8(module.sample(range(n), ddim(self.task.S), self.task.seed)).cpu().numpy()


def ddim(S: int) -> Generalized:
    """DDIM as `sampler=ddim` has it."""
    return Generalized.with_eta(S, 0.0, Uniform(), True)


def trained(turns: Turns, task: Task, *left_out: str) -> None:
    """Our training job, Lightning's loop, EMA and logging on, without the callbacks `left_out`."""
    node, job = job_of(task, f"trainer.max_steps={ENDLESS}")
    run(turns, task, node, job, left_out)


def run(turns: Turns, task: Task, node: dict[str, Any], job: TrainingJob, left_out: tuple[str, ...]) -> None:
    """A job, with a gate as its last callback."""
    job.callbacks = {name: callback for name, callback in job.callbacks.items() if name not in left_out}
    job.callbacks["gate"] = Gate(turns, task)
    job.run(Path(task.folder) / "run", Facts({k: v for k, v in node.items() if k != "job"}, identity(node)))


def step(turns: Turns, task: Task) -> None:
    """The training step: nothing beside it but what every run logs. Saving is left out, as it is of the peers."""
    trained(turns, task, *SAMPLING, "held_out")


def loop(turns: Turns, task: Task) -> None:
    """The loop as a run has it, but for what samples."""
    trained(turns, task, *SAMPLING)


def whole(turns: Turns, task: Task) -> None:
    """The default run, as long as it is, but for what samples: its recipe to the end."""
    node, job = job_of(task)
    run(turns, task, node, job, SAMPLING)


def bare(turns: Turns, task: Task) -> None:
    """The same network, data and optimiser in a loop written by hand: t, ε, loss, backward, clipping, optimiser, EMA."""
    _, job = job_of(task, f"trainer.max_steps={ENDLESS}")
    module, device = job.module.to(task.device), task.device
    facts = {"parameters": parameters(module), "torch": torch.__version__}
    facts |= {"gflop": forward(module.denoiser.network, job.data.shape)}
    step = BareStep(module, from_uint8(job.data.train.to(device)), task)
    facts |= {"precision": task.precision, "memory_format": task.memory_format, "fused": task.fused}
    turns.answer(threads=torch.get_num_threads(), **facts)
    obey(turns, step, wait=partial(synchronise, device))


class BareStep:
    """One step of the bare loop."""

    def __init__(self, module: LightningModule, images: Tensor, task: Task):
        for one in (module.denoiser, module.ema):
            one.network.to(memory_format=getattr(torch, f"{task.memory_format}_format", torch.channels_last))
        self.module, self.images, self.task, self.k = module.train(), images, task, 0
        self.optimizer = module.optimizer_over(module.denoiser.parameters(), task.fused)
        self.autocast = torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16")

    def __call__(self) -> None:
        module, device = self.module, self.images.device
        x_0 = self.images[torch.randint(len(self.images), (self.task.batch,), device=device)]
        t = torch.randint(1, module.denoiser.process.T + 1, (len(x_0),), device=device)
        with self.autocast:
            loss = module.objective(module.denoiser, x_0, t, torch.randn_like(x_0)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.denoiser.parameters(), CLIP)
        self.optimizer.step()
        module.ema.update(module.denoiser, self.k)
        self.k += 1


def launched(job: TrainingJob) -> tuple[Hardware, Fabric]:
    """The averaged weights' network ready to sample, as an evaluation makes it so."""
    network = job.module.ema.network
    hardware = for_sampling(job.hardware.placed(), network, job.data.shape, None)
    hardware.apply(network)
    return hardware, Fabric(**hardware.lightning())


def sample(turns: Turns, task: Task) -> None:
    """A batch of images by DDIM in S steps from the averaged weights, under the precision that an evaluation has."""
    _, job = job_of(task)
    hardware, fabric = launched(job)
    ema = job.module.ema.to(fabric.device)

    @torch.inference_mode()
    def once() -> None:
        with fabric.autocast():
            for _, x_0 in generate(ema, ddim(task.S), range(task.batch), job.data.shape, seed=0, block=task.batch):
                x_0.float().cpu()

    facts = {"precision": hardware.precision, "memory_format": hardware.memory_format, "torch": torch.__version__}
    facts |= {"gflop": forward(ema.network, job.data.shape)}
    turns.answer(parameters=parameters(job.module), threads=torch.get_num_threads(), **facts)
    obey(turns, once)
