"""The machine a run uses: what Lightning's Trainer and Fabric share, plus threads and memory format."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

# Measured on two CPU cores: channels_last gains 48 % at 32x32 and nothing at 8x8.
CHANNELS_LAST_FROM_PIXELS = 28 * 28
ACCELERATORS, STRATEGIES = ("auto", "cpu", "gpu", "cuda", "mps"), ("auto", "ddp")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Hardware:
    """Where and how numbers are computed; `auto` values are settled once by `resolved`.

    `devices`: how many, auto, or a list of GPUs; `precision`: 32-true, bf16-mixed, 16-mixed; `threads`: CPU threads of a
    process (0: as many as cores are free to it); `memory_format`: channels_last or contiguous.
    Raises ValueError for a GPU that is not there, for another precision and for fp16 or a list of devices on a CPU.
    """

    accelerator: str = "auto"
    devices: int | str | Sequence[int] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    threads: int = 0
    memory_format: str = "auto"

    def __post_init__(self):
        for name, words in (("accelerator", ACCELERATORS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in words:
                raise ValueError(f"hardware.{name}={getattr(self, name)}: {', '.join(words)}")
        if self.threads < 0 or self.num_nodes < 1 or self.devices in (0, []):
            said = f"hardware.threads={self.threads}, num_nodes={self.num_nodes}, devices={self.devices}"
            raise ValueError(f"{said}: no number of threads is below 0, and at least 1 node and device are needed")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise ValueError(f"hardware.accelerator={self.accelerator}: no CUDA device here; hardware=cpu runs without")
        if self.memory_format not in ("auto", "channels_last", "contiguous"):
            raise ValueError(f"hardware.memory_format={self.memory_format}: auto, channels_last or contiguous")
        if self.precision not in PRECISIONS:
            said = f"hardware.precision={self.precision}: {', '.join(PRECISIONS)}"
            raise ValueError(f"{said}; weights and their average stay in fp32")
        if not isinstance(self.devices, int | str) and not self._on_gpu:
            raise ValueError(f"hardware.devices={list(self.devices)}: a list names GPUs; a CPU takes a number of processes")
        if not self._on_gpu and str(self.precision).startswith("16"):
            raise ValueError(f"hardware.precision={self.precision}: fp16 needs a GPU; a CPU takes 32-true or bf16-mixed")

    @property
    def _on_gpu(self) -> bool:
        return self.accelerator in ("gpu", "cuda") or (self.accelerator == "auto" and torch.cuda.is_available())

    def resolved(self, shape: Sequence[int], parameters: int) -> "Hardware":
        """Every `auto` settled from (device, pixels, parameters); what a checkpoint records."""
        pixels = math.prod(shape[1:])
        accelerator = self._accelerator
        # On a CPU bfloat16 is slower at 8x8 and gains nothing beside channels_last at 32x32.
        precision = "bf16-mixed" if self._on_gpu and parameters > 1e6 else "32-true"
        large = pixels >= CHANNELS_LAST_FROM_PIXELS
        return replace(
            self._launched(),
            accelerator=accelerator,
            precision=precision if self.precision == "auto" else self.precision,
            threads=self.threads or max(1, cores() // self._processes_here(accelerator)),
            memory_format=("channels_last" if large else "contiguous")
            if self.memory_format == "auto"
            else self.memory_format,
        )

    def following(self, stored: Any) -> "Hardware":
        """With the precision that a run was made in, where it is left to us and the accelerator is the same.

        `stored`: what `resolved` settled then, as a checkpoint holds it; anything else is passed over.
        """
        if self.precision != "auto" or not isinstance(stored, dict) or stored.get("precision") not in PRECISIONS:
            return self
        same = stored.get("accelerator") == self._accelerator
        return replace(self, precision=stored["precision"]) if same else self

    @property
    def _accelerator(self) -> str:
        return ("gpu" if self._on_gpu else "cpu") if self.accelerator == "auto" else self.accelerator

    def _launched(self) -> "Hardware":
        """As torchrun says, where it started this process: so many processes a node, so many nodes."""
        if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("WORLD_SIZE") == "1":
            return self
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        strategy = "ddp" if self.strategy == "auto" else self.strategy
        return replace(self, devices=here, num_nodes=int(os.environ["WORLD_SIZE"]) // here, strategy=strategy)

    def _processes_here(self, accelerator: str) -> int:
        devices = self._launched().devices
        return devices if accelerator == "cpu" and isinstance(devices, int) else 1

    def apply(self, network: torch.nn.Module) -> torch.nn.Module:
        """Set the thread count and give the network its memory format."""
        torch.set_num_threads(self.threads)
        return network.to(memory_format=getattr(torch, f"{self.memory_format}_format", torch.channels_last))

    def lightning(self) -> dict:
        """The keywords that Trainer and Fabric share."""
        names = ("accelerator", "devices", "num_nodes", "strategy", "precision")
        return {name: getattr(self, name) for name in names}


def cores() -> int:
    """CPU cores this process may use: OMP_NUM_THREADS where a launcher has shared them out, else its affinity."""
    if (said := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return int(said)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
