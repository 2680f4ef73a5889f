"""What happens inside our step and sampler: waits of the host for the device, operators, floating-point operations."""

import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from anysigma.data.images import from_uint8
from anysigma.diffusion.samplers.base import generate
from anysigma.runs.identity import identity
from anysigma.training.job import Facts
from benchmarks.operations import step
from benchmarks.ours import BareStep, ddim, job_of
from benchmarks.parity import made
from benchmarks.task import NETWORKS, Task
from benchmarks.turns import synchronise

WARM, STEPS, SHOWN = 3, 5, 12
# bf16 with dense tensors, FLOP/s, by a part of the GPU's name (NVIDIA's data sheets).
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
# Operators whose answer the host waits for; `item` and `is_nonzero` are asked as they are in inference mode alone.
ASKING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")


class Asked(TorchDispatchMode):
    """Counts the operators that make the host wait, whatever the device: what a GPU would wait for is seen on a CPU too.

    Not those of the optimiser: its step counts lie on the CPU wherever the weights are, and no one waits for them. Nor
    those of a single float64 on the CPU: a coefficient of the schedule's table, which lies there wherever the images are.
    """

    def __init__(self):
        super().__init__()
        self.count, self.optimizing = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asks = func.overloadpacket.__name__ in ASKING and not self.optimizing
        self.count += asks and not all(map(coefficient, (one for one in args if isinstance(one, torch.Tensor))))
        return func(*args, **(kwargs or {}))


def coefficient(tensor: torch.Tensor) -> bool:
    """Whether it is a number of the schedule's, or made of such."""
    return tensor.ndim == 0 and tensor.dtype == torch.float64 and tensor.device.type == "cpu"


class Waits:
    """How often the host waited in a block: `asked` by operators, `warned` by CUDA itself (None without a GPU)."""

    def __init__(self, device: str):
        self.device, self.asked, self.warned = device, 0, None

    def __enter__(self) -> "Waits":
        self._mode, self._caught = Asked(), warnings.catch_warnings(record=True)
        self._said = self._caught.__enter__()
        warnings.simplefilter("always")
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        self._hooks = [
            register_optimizer_step_pre_hook(lambda *_: setattr(self._mode, "optimizing", True)),
            register_optimizer_step_post_hook(lambda *_: setattr(self._mode, "optimizing", False)),
        ]
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        if self.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
            self.warned = sum("synchronizing CUDA operation" in str(one.message) for one in self._said)
        self._caught.__exit__(*error)
        self.asked = self._mode.count


class Watch(Callback):
    """Counts waits over whole steps of the trainer, after the first ones."""

    def __init__(self, waits: Waits):
        self.waits = waits

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == WARM:
            self.waits.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == WARM + STEPS - 1:
            self.waits.__exit__(None, None, None)


def waits(task: Task) -> dict[str, Any]:
    """Waits of the host a step between two logs, and a sampled batch."""
    node, job = job_of(task, f"trainer.max_steps={WARM + STEPS + 1}", "trainer.log_every_n_steps=1000000")
    counted = Waits(task.device)
    job.callbacks = {name: job.callbacks[name] for name in ("progress", "last")} | {"watch": Watch(counted)}
    job.run(Path(task.folder) / "watched", Facts({k: v for k, v in node.items() if k != "job"}, identity(node)))
    rows = [["a training step", *(each(n, STEPS) for n in (counted.asked, counted.warned))]]
    ema = job.module.ema.to(task.device)
    with torch.inference_mode(), Waits(task.device) as counted:
        list(generate(ema, ddim(task.S), range(task.batch), job.data.shape, seed=0, block=task.batch))
    rows.append([f"DDIM, S = {task.S}, a batch", *(each(n, 1) for n in (counted.asked, counted.warned))])
    columns = ["where", "operators that wait", "waits that CUDA reports"]
    return {"title": "the host waits for the device", "columns": columns, "rows": rows}


def each(count: int | None, of: int) -> str:
    """A step's."""
    return "" if count is None else f"{count / of:g}"


def operators(task: Task) -> dict[str, Any]:
    """Where the time of one step goes, by operator; the bare loop, so that nothing else is seen."""
    _, job = job_of(task)
    module = job.module.to(task.device)
    one = BareStep(module, from_uint8(job.data.train.to(task.device)), task)
    for _ in range(WARM):
        one()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (task.device == "cuda")
    synchronise(task.device)
    with profile(activities=activities) as seen:
        one()
        synchronise(task.device)
    own = "self_device_time_total" if task.device == "cuda" else "self_cpu_time_total"
    found = sorted(seen.key_averages(), key=lambda one: -getattr(one, own))
    whole = sum(getattr(one, own) for one in found) or 1
    rows = [[one.key[:60], str(one.count), f"{100 * getattr(one, own) / whole:.1f} %"] for one in found[:SHOWN]]
    columns = ["operator", "calls", "share of the step"]
    return {"title": f"one training step by operator, {task.network} network", "columns": columns, "rows": rows}


def utilisation(races: dict[str, dict[str, Any]], device: str) -> dict[str, Any]:
    """Model FLOP utilisation of every training step that was raced: operations of forward and backward over the peak's."""
    peak, what = peak_of(device)
    rows = []
    for part in races.values():
        name, one = "anysigma, bf16", part["entries"]["anysigma, bf16"]
        net = NETWORKS[part["network"]]
        flop = 1e9 * step(made(net), net.shape)
        rows.append([f"{name}, {part['title']}", f"{flop / 1e9:.1f}", f"{one['median']:.4g}",
                     f"{100 * flop * one['median'] / peak:.1f} %"])  # fmt: skip
    columns = ["step", "GFLOP an image", "images/s", "utilisation"]
    return {
        "title": f"model FLOP utilisation; peak {peak / 1e12:.3g} TFLOP/s in bf16, {what}",
        "columns": columns,
        "rows": rows,
    }


def peak_of(device: str) -> tuple[float, str]:
    """The GPU's by its data sheet; of a CPU, or of a GPU that is not listed, what a large product reaches here."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    listed = [peak for part, peak in PEAKS.items() if part in name]
    if listed:
        return listed[0], "by its data sheet"
    n, times = 2048, []
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    for _ in range(6):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times), f"reached by a product of {n} x {n}"
