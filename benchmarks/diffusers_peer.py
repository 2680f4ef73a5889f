"""diffusers as a contestant: UNet2DModel, the loop of its unconditional example, DDIMPipeline."""

import copy
from functools import partial

import diffusers
import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.operations import forward
from benchmarks.task import Task, held_to
from benchmarks.turns import Turns, obey, synchronise

PRECISIONS = {"fp32": "no", "bf16": "bf16"}


def unet(task: Task) -> UNet2DModel:
    """The same network as ours: same parts, same number of parameters; first weights are its own."""
    net = task.net
    heights = [net.shape[1] >> level for level in range(len(net.multipliers))]
    down = ["AttnDownBlock2D" if height == net.attention else "DownBlock2D" for height in heights]
    model = UNet2DModel(
        sample_size=net.shape[1:], in_channels=net.shape[0], out_channels=net.shape[0], layers_per_block=net.blocks,
        block_out_channels=[net.channels * m for m in net.multipliers], down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)], norm_num_groups=net.groups,
        norm_eps=net.norm_eps, attention_head_dim=None, freq_shift=1, flip_sin_to_cos=False, dropout=net.dropout,
        downsample_padding=0 if net.asymmetric else 1,
    )  # fmt: skip
    held_to(sum(p.numel() for p in model.parameters()), task)
    return model.to(memory_format=getattr(torch, f"{task.memory_format}_format", torch.channels_last))


def noising(task: Task) -> DDPMScheduler:
    """T = 1000, by the name that it gives a schedule."""
    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule=names[task.schedule])


class Loop:
    """examples/unconditional_image_generation/train_unconditional.py, its defaults, images in memory as ours are."""

    def __init__(self, task: Task):
        self.task = task
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[task.precision], cpu=task.device == "cpu")
        model = unet(task)
        self.ema = EMAModel(
            model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75,
            model_cls=UNet2DModel, model_config=model.config,
        )  # fmt: skip
        self.noise_scheduler = noising(task)
        optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        images = torch.from_numpy(np.load(task.images)).float().div_(127.5).sub_(1)
        batches = DataLoader(TensorDataset(images), task.batch, shuffle=True, drop_last=True)
        rate = get_scheduler("cosine", optimizer, num_warmup_steps=500 if task.lr < 1e-3 else 100, num_training_steps=10**6)
        self.model, self.optimizer, self.batches, self.lr_scheduler = self.accelerator.prepare(
            model, optimizer, batches, rate
        )
        self.ema.to(self.accelerator.device)
        self._rest = iter(())

    def _batch(self) -> torch.Tensor:
        while True:
            for (batch,) in self._rest:
                return batch
            self._rest = iter(self.batches)

    def __call__(self) -> float:
        """One step; the loss is read, as the example's progress bar does."""
        images = self._batch()
        noise = torch.randn(images.shape, dtype=torch.float32, device=images.device)
        T = self.noise_scheduler.config.num_train_timesteps
        t = torch.randint(0, T, (len(images),), device=images.device).long()
        noisy = self.noise_scheduler.add_noise(images, noise, t)
        with self.accelerator.accumulate(self.model):
            loss = F.mse_loss(self.model(noisy, t).sample.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.model.parameters())
        return loss.detach().item()

    def images(self, n: int) -> np.ndarray:
        """n images of the averaged weights, uint8 `[n, C, H, W]`."""
        network = copy.deepcopy(self.accelerator.unwrap_model(self.model)).eval()
        self.ema.copy_to(network.parameters())
        with torch.autocast(self.task.device, torch.bfloat16, enabled=self.task.precision == "bf16"):
            found = pipeline(network, self.task)(n, num_inference_steps=self.task.S, output_type="np").images
        return (found * 255).round().astype(np.uint8).transpose(0, 3, 1, 2)


def pipeline(network: UNet2DModel, task: Task) -> DDIMPipeline:
    """DDIMPipeline without its progress bar."""
    made = DDIMPipeline(network, DDIMScheduler.from_config(noising(task).config))
    made.set_progress_bar_config(disable=True)
    return made


def ready(turns: Turns, task: Task, network: torch.nn.Module) -> None:
    """What is said of it."""
    count = sum(p.numel() for p in network.parameters())
    facts = {"precision": task.precision, "memory_format": task.memory_format, "diffusers": diffusers.__version__}
    facts |= {"gflop": forward(network, task.net.shape)}
    turns.answer(parameters=count, threads=torch.get_num_threads(), torch=torch.__version__, **facts)


def step(turns: Turns, task: Task) -> None:
    """The training step."""
    loop = Loop(task)
    ready(turns, task, loop.model)
    obey(turns, loop, loop.images, partial(synchronise, task.device))


def sample(turns: Turns, task: Task) -> None:
    """A batch of images by its pipeline.

    bf16 is autocast: with weights cast to bf16 the pipeline fails where it makes numpy arrays of its images.
    """
    network = unet(task).to(task.device).eval()
    made = pipeline(network, task)
    ready(turns, task, network)

    def once() -> None:
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
            made(task.batch, num_inference_steps=task.S, output_type="np")

    obey(turns, once)
